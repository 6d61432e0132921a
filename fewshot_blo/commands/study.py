"""``fewshot-blo study``."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.studies import read_study, run_study


def parser() -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(
        description="Solve a bilevel problem beyond few-shot learning with several strategies, "
        "check what they find by retraining, and write a table (Markdown, CSV) and a picture. The "
        "same command goes on after Ctrl-C."
    )
    options.add_argument("recipe", type=Path, help="of a study (recipes/studies)")
    options.add_argument("--root", default="", help="folder of the data set")
    options.add_argument(
        "--folder", type=Path, help="of the rows and the table; by default runs/RECIPE"
    )
    options.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the study")
    options.add_argument("--only", nargs="+", default=[], help="rows, where not all")
    return options


def run(parser: ArgumentParser, parsed: Namespace) -> int:
    """Runs it; returns the exit status."""
    del parser
    study, rows = read_study(parsed.recipe, parsed.root)
    unknown = sorted(set(parsed.only) - set(rows))
    if unknown:
        raise ConfigurationError(f"there is no row '{unknown[0]}'; there are {', '.join(rows)}")
    rows = {name: row for name, row in rows.items() if not parsed.only or name in parsed.only}
    folder = parsed.folder or Path("runs") / parsed.recipe.stem
    run_study(study, rows, folder, seeds=parsed.seeds)
    return 0
