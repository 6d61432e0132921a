"""Publishes the figures of finished runs: appends a row to ``recipes/published.jsonl``.

    python scripts/publish.py runs/omniglot/protonet/seed0 --name omniglot-5w1s/protonet \
        --recipe omniglot-5w1s/protonet --evaluation runs/omniglot/evaluation.json \
        --title "ProtoNet, trained on 60-way tasks" --table omniglot-5w1s

Several runs are several seeds. Settings, commits, figures and cost are read from the runs and from
the evaluation file of ``compare`` or ``evaluate``. A run is refused if it is unfinished, if its
code or that of the evaluation had changes that are not committed, or if the recipe has other
settings. ``--of`` publishes an evaluation of a released model or of another row. Then ``python
scripts/result_tables.py`` writes the tables.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from row_checks import (
    Report,
    check_distinct,
    check_is_row,
    check_measured,
    check_same_tasks,
    check_start,
    check_table,
    check_test,
    differing,
    evaluations_of,
    figures_of,
    read_report,
)
from torch import Tensor

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.evaluation.result import half_width
from fewshot_blo.experiments.problem import metric_of
from fewshot_blo.experiments.published import changes, frozen
from fewshot_blo.experiments.recipes import read_recipe, with_seed
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.experiments.table import Row
from fewshot_blo.records.loggers.logger import flat
from fewshot_blo.records.published import (
    PUBLISHED,
    Difference,
    Figure,
    PublishedRow,
    digest_of,
    line_of,
    published_row,
    published_rows,
)
from fewshot_blo.records.quantity import Quantity
from fewshot_blo.records.shipped import recipe_names, released_models
from fewshot_blo.records.tables import deviation
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.run import BEST, PROVENANCE

_COMMIT = re.compile(r"[0-9a-f]{40}")


def main(words: Sequence[str] | None = None) -> int:
    """Appends the row; returns the exit status."""
    options = _parser().parse_args(words)
    try:
        row = _row(options)
        rows = published_rows(options.file)
        if row.name in rows:
            raise ConfigurationError(f"there is a row {row.name}: choose another name")
        if row.of and row.of not in released_models():
            published_row(row.of, rows)
        for sentence in changes(row, {**rows, row.name: row}) if row.settings else ():
            raise ConfigurationError(sentence)
    except (CheckpointError, ConfigurationError, OSError) as error:
        print(f"publish.py: {error}", file=sys.stderr)
        return 2
    with options.file.open("a", encoding="utf-8") as file:
        file.write(f"{line_of(row)}\n")
    print(f"{row.name}, settings {row.digest or 'of ' + row.of}: appended to {options.file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or checkpoints (--of)")
    parser.add_argument("--name", required=True, help="name of the row; begins with the recipe's")
    parser.add_argument("--title", required=True, help="the method as the table prints it")
    parser.add_argument("--table", required=True, help="a table of result_tables.py, or text")
    parser.add_argument("--evaluation", type=Path, required=True)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--recipe", help="recipe of the package with the settings of the runs")
    kind.add_argument("--of", help="released model or row that was evaluated")
    parser.add_argument("--max_steps", type=int, help="bound that the runs were trained with")
    parser.add_argument("--start", default="", help="row or released model that training began at")
    parser.add_argument("--minus", default="", help="row to give the paired difference from")
    parser.add_argument("--minus_runs", type=Path, nargs="+", default=[], help="its runs")
    parser.add_argument("--minus_norm", default="transductive", help="norm mode of the difference")
    parser.add_argument("--note", default="")
    parser.add_argument("--file", type=Path, default=PUBLISHED)
    return parser


def _row(options: argparse.Namespace) -> PublishedRow:
    report = read_report(options.evaluation)
    check_test(report, options.evaluation)
    paths = [_checkpoint(run) for run in options.runs]
    check_distinct(paths)
    for path in paths:
        check_measured(report, options.evaluation, path)
    configs = [config_from(checkpoints.load(path).config) for path in paths]
    metric = metric_of(configs[0]).quantity
    measured = report["provenance"]["commit"].split(", ")  # Of the parts, if there were several.
    commits = [_commit(commit, options.evaluation) for commit in measured]
    own: dict[str, Any] = {"of": options.of}
    for path in paths if options.of else ():
        check_is_row(path, options.of, published_rows(options.file))
    if options.recipe:
        own = _training(options, configs)
        commits = [commit for run in options.runs for commit in _commits(run)] + commits
    row = PublishedRow(
        name=options.name,
        title=options.title,
        table=options.table,
        commits=list(dict.fromkeys(commits)),
        evaluation=report["settings"],
        figures={
            found["norm"]: _figure(_values(report, paths, found["norm"], metric), metric)
            for found in evaluations_of(report, paths[0])
        },
        difference=_difference(options, report, paths, metric),
        note=options.note,
        **own,
    )
    check_table(row, published_rows(options.file))
    return row


def _training(options: argparse.Namespace, configs: Sequence[Config]) -> dict[str, Any]:
    """The entries of a row with training of its own, once the runs agree with their recipe."""
    if options.recipe not in recipe_names():
        raise ConfigurationError(
            f"recipe is {options.recipe}: it must be one of the package, without folder and suffix"
        )
    if not options.name.startswith(options.recipe):
        raise ConfigurationError(
            f"name is {options.name}: it must begin with that of the recipe, {options.recipe}"
        )
    rows = published_rows(options.file)
    if options.start and options.start not in released_models():
        published_row(options.start, rows)
    for run, config in zip(options.runs, configs, strict=True):
        check_start(run, config, options.start, rows)
        expected = with_seed(read_recipe(options.recipe, max_steps=options.max_steps), config.seed)
        for sentence in differing(flat(frozen(config)), flat(frozen(expected))):
            raise ConfigurationError(
                f"{run} has {sentence} in recipe {options.recipe}: publish it with a recipe of its "
                "own settings"
            )
    settings = frozen(read_recipe(options.recipe))
    return {
        "recipe": options.recipe,
        "settings": settings,
        "digest": digest_of(settings),
        "max_steps": options.max_steps,
        "seeds": [config.seed for config in configs],
        "start": options.start,
        "cost": _cost(options.runs, configs[0].train.steps),
    }


def _cost(runs: Sequence[Path], steps: int) -> dict[str, float]:
    for run in runs:
        done = Row("", [run / BEST], []).cost().get("steps", 0)
        if done < steps:
            raise ConfigurationError(
                f"{run} is at step {done:.0f} of {steps}: publish it when it is finished"
            )
    cost = Row("", [run / BEST for run in runs], []).cost()
    if not steps:
        return {}
    return {
        "steps": steps,
        "minutes": round(cost["seconds"] / 60, 1),
        "tasks_per_second": round(cost["tasks_per_second"], 1),
        "peak_gib": round(cost["peak_gib"], 2),
    }


def _figure(values: Sequence[Tensor], metric: Quantity) -> Figure:
    """The figure as it is printed: mean over seeds of each task, then over tasks."""
    tasks = torch.stack(list(values)).mean(0)
    spread = deviation([float(each.mean()) for each in values]) if len(values) > 1 else None
    return Figure(
        float(metric.number(float(tasks.mean()))),
        float(metric.half(half_width(tasks))),
        None if spread is None else float(metric.half(spread)),
    )


def _difference(
    options: argparse.Namespace, report: Report, paths: Sequence[Path], metric: Quantity
) -> Difference | None:
    if not options.minus:
        return None
    rows = published_rows(options.file)
    subtracted = published_row(options.minus, rows)
    others = [_checkpoint(run) for run in options.minus_runs]
    if not others:
        raise ConfigurationError(
            f"minus is {options.minus}, and there are no minus_runs: name the runs of this row"
        )
    check_same_tasks(report, subtracted)
    check_distinct(others)
    for path in others:
        check_measured(report, options.evaluation, path)
        check_is_row(path, options.minus, rows)
    own, other = (
        torch.stack(_values(report, each, options.minus_norm, metric)).mean(0)
        for each in (paths, others)
    )
    difference = own - other
    mean, half = float(difference.mean()), half_width(difference)
    return Difference(
        options.minus, options.minus_norm, float(metric.number(mean)), float(metric.half(half))
    )


def _values(report: Report, paths: Sequence[Path], norm: str, metric: Quantity) -> list[Tensor]:
    """The metric of each task for each checkpoint, ``[tasks]``."""
    return [
        torch.tensor(figures_of(report, path, norm)[f"task_{metric.key}"], dtype=torch.float64)
        for path in paths
    ]


def _checkpoint(run: Path) -> Path:
    return run / BEST if run.is_dir() else run


def _commits(run: Path) -> list[str]:
    """The commits of all attempts of a run."""
    lines = (run / PROVENANCE).read_text(encoding="utf-8").splitlines()
    return [_commit(json.loads(line)["commit"], run) for line in lines]


def _commit(commit: str, place: Path) -> str:
    """The first seven digits of a commit.

    Raises:
        ConfigurationError: if it does not say which code was measured.
    """
    if not _COMMIT.fullmatch(commit):
        raise ConfigurationError(
            f"the code of {place} was '{commit}': publish what was measured in a checkout without "
            "changes that are not committed"
        )
    return commit[:7]


if __name__ == "__main__":
    sys.exit(main())
