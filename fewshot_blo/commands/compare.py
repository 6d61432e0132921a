"""``fewshot-blo compare``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fewshot_blo.experiments.compare import compare
from fewshot_blo.experiments.request import EvaluationRequest


def parser() -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(
        description="Train the recipes that have no finished run, evaluate all on the same tasks, "
        "and write a table (Markdown, CSV) and a picture. The same command goes on after Ctrl-C."
    )
    options.add_argument(
        "sources", nargs="+", type=Path, help="recipes (YAML), folders of runs, or checkpoints"
    )
    options.add_argument(
        "--folder", type=Path, default=Path("runs/compare"), help="of new runs and the table"
    )
    options.add_argument("--seeds", nargs="+", type=int, default=[0], help="of training recipes")
    options.add_argument(
        "--max_steps", type=int, help="train recipes of more outer steps for so many only"
    )
    options.add_class_arguments(EvaluationRequest, skip={"output"})
    return options


def run(parser: ArgumentParser, parsed: Namespace) -> int:
    """Runs it; returns the exit status."""
    built = parser.instantiate(parsed)
    names = [f.name for f in fields(EvaluationRequest) if f.name != "output"]
    request = EvaluationRequest(**{name: built[name] for name in names})
    compare(
        parsed.sources,
        request,
        folder=parsed.folder,
        seeds=parsed.seeds,
        max_steps=parsed.max_steps,
    )
    return 0
