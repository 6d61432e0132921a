"""Ranks strategies: equal trials for the settings of each, then equal runs of several seeds.

    python benchmarks/ranking.py benchmarks/rankings/NAME.yaml --root DIR [--seeds 0 1 2]

All rows of a file have the same encoder, tasks and outer steps. Settings of each are chosen by
validation accuracy in as many short trials, none of which is ended early, from the file's ranges.
The table is that of ``fewshot-blo compare``: differences from the first row, paired over tasks,
with the interval over tasks and the standard deviation over training seeds. The same command goes
on after an interrupt. Writes tuned/NAME.yaml for each row, and the table and figures of the runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.compare import compare
from fewshot_blo.experiments.components import merged
from fewshot_blo.experiments.recipes import read_settings
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.experiments.tuning.tune import tune
from fewshot_blo.machine.allocator import keep_freed_memory
from fewshot_blo.records.files import atomic_write


@dataclass(frozen=True)
class Ranking:
    """What is ranked.

    Attributes:
        common: settings of every row, over those of its recipe.
        trials: number of trials for each row, its recipe included.
        trial_steps: outer steps of a trial.
        steps: outer steps of the runs that are compared.
        rows: recipe, further settings and searched settings (``search``) of each row by name.
    """

    common: dict[str, Any]
    trials: int
    trial_steps: int
    steps: int
    rows: Mapping[str, dict[str, Any]]


def read_ranking(file: Path) -> Ranking:
    """What a file says is ranked.

    Raises:
        ConfigurationError: if it cannot be read, or a key is missing or unknown.
    """
    content = read_settings(file)
    _check_keys(f"{file}", content, {each.name for each in fields(Ranking)}, set())
    for name, row in content["rows"].items():
        _check_keys(f"row {name} of {file}", row, {"recipe", "search"}, {"settings"})
    return Ranking(**content)


def _check_keys(where: str, content: Any, needed: set[str], further: set[str]) -> None:
    """Checks the keys of a part of the file."""
    found = set(content) if isinstance(content, dict) else set()
    for what, names in (("lacks", needed - found), ("has unknown", found - needed - further)):
        if names:
            raise ConfigurationError(
                f"{where} {what} {', '.join(sorted(map(str, names)))}: its keys are "
                f"{', '.join(sorted(needed | further))}"
            )


def tuned(ranking: Ranking, name: str, folder: Path, root: str) -> Path | None:
    """The recipe of a row with its chosen settings; None if the search was interrupted."""
    row = ranking.rows[name]
    settings = read_settings(Path(row["recipe"]))
    for over in (ranking.common, row.get("settings", {})):
        settings, _ = merged(settings, over)
    recipe = folder / "recipes" / f"{name}.yaml"
    _write(recipe, settings)
    # A search that is complete is read; one of other settings is refused.
    found = tune(
        recipe,
        folder=folder / "search" / name,
        trials=ranking.trials,
        search=row["search"],
        pruner="none",
        root=root,
        max_steps=ranking.trial_steps,
    )
    if found.interrupted:
        return None
    best, _ = merged(read_settings(found.best), {"train": {"steps": ranking.steps}})
    place = folder / "tuned" / f"{name}.yaml"
    _write(place, best)
    return place


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(yaml.safe_dump(dict(settings), sort_keys=False).encode())


def main() -> int:
    """Runs what is missing; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ranking", type=Path, help="file with the rows (benchmarks/rankings)")
    parser.add_argument("--root", default="", help="folder of the data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", type=int, default=1000, help="number of test tasks")
    parser.add_argument("--output", type=Path, help="folder; by default runs/NAME")
    arguments = parser.parse_args()
    keep_freed_memory()
    folder = arguments.output or Path("runs") / arguments.ranking.stem
    try:
        ranking = read_ranking(arguments.ranking)
        recipes = []
        for name in ranking.rows:
            recipe = tuned(ranking, name, folder, arguments.root)
            if recipe is None:
                return 130
            recipes.append(recipe)
        request = EvaluationRequest(tasks=arguments.tasks, root=arguments.root)
        compare(recipes, request, folder=folder / "runs", seeds=arguments.seeds)
    except KeyboardInterrupt:  # The runs are kept, and compare has said so.
        return 130
    except (CheckpointError, ConfigurationError, OSError) as error:  # OSError: also of data.
        print(f"ranking.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
