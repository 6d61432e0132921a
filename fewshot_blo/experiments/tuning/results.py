"""What a search found: a row for each trial, the table, and the best settings as a recipe."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fewshot_blo.experiments.tuning.search import Search
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.quantity import Quantity
from fewshot_blo.records.tables import markdown, write_table
from fewshot_blo.training.run import BEST, LAST

BEST_RECIPE, PICTURE = "best.yaml", "search.png"
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}
_ENOUGH = 10
"""Complete trials from which on importances of settings are estimated."""


@dataclass(frozen=True)
class Row:
    """A trial.

    Attributes:
        number: of the trial; 0 is the recipe.
        values: those of the searched settings by name.
        state: complete, pruned, failed or unfinished.
        value: best validation value, accuracy in [0, 1]; NaN if there is none.
        interval: half-width of its 95 % confidence interval over tasks.
        steps: outer steps taken.
        seconds: wall time of the run, interruptions not included.
        reason: why it failed; else empty.
    """

    number: int
    values: Mapping[str, Any]
    state: str
    value: float
    interval: float
    steps: int
    seconds: float
    reason: str = ""


def rows_of(search: Search) -> list[Row]:
    """All trials that were begun, by number."""
    rows = []
    for trial in search.trials():
        if trial.state.name in _STATES:
            known = trial.user_attrs
            value = trial.value if trial.state.name == "COMPLETE" else known.get("validation")
            rows.append(
                Row(
                    trial.number,
                    trial.params,
                    _STATES[trial.state.name],
                    math.nan if value is None else value,
                    known.get("interval", math.nan),
                    known.get("steps", 0),
                    known.get("seconds", 0.0),
                    known.get("reason", ""),
                )
            )
    return rows


def best_of(metric: Quantity, rows: Sequence[Row]) -> Row | None:
    """The complete trial with the best value, the first of several; None if none is."""
    complete = [row for row in rows if row.state == "complete"]
    return max(complete, key=lambda row: (metric.rank(row.value), -row.number), default=None)


def write_results(search: Search) -> list[Row]:
    """Writes the table and the best recipe, and removes the checkpoints of other trials.

    To be called in this worker's ``turn``.
    """
    rows, metric = rows_of(search), search.metric
    best = best_of(search.metric, rows)
    names = [axis.name for axis in search.space.axes]
    records = [
        {"trial": row.number, **{n: row.values.get(n) for n in names}}
        | {f"validation {metric.name}": metric.factor * row.value}
        | {"interval": metric.factor * row.interval}
        | {"steps": row.steps, "state": row.state, "seconds": row.seconds, "reason": row.reason}
        for row in rows
    ]
    write_table(search.folder, f"{table(search, rows)}\n{summary(search, rows)}\n", records)
    if best is not None:
        _write_best(search, best)
    for row in rows:
        if row is not best and row.state != "unfinished" and not search.request.keep:
            for name in (BEST, LAST):
                (search.run_folder(row.number) / name).unlink(missing_ok=True)
    return rows


def _write_best(search: Search, best: Row) -> None:
    """Writes the settings of the best trial, unless the file has them already."""
    path, tasks = search.folder / BEST_RECIPE, search.settings.validation_tasks
    metric = search.metric
    title = (
        f"# Trial {best.number} of fewshot-blo tune: validation {metric.name} "
        f"{worth(metric, best)} ({tasks} tasks).\n# Tuned: {_values(search, best)}.\n"
    ).encode()
    if path.exists() and path.read_bytes().startswith(title):
        return
    settings = yaml.safe_dump(search.space.config(best.values).plain(), sort_keys=False)
    with atomic_write(path) as file:
        file.write(title + settings.encode())


def table(search: Search, rows: Sequence[Row]) -> str:
    """The trials in Markdown."""
    names = [axis.name for axis in search.space.axes]
    columns = [
        "trial",
        *short(names),
        f"validation {search.metric.label}",
        "outer steps",
        "state",
        "seconds",
    ]
    best = best_of(search.metric, rows)
    cells = [
        [
            f"{row.number}{' (recipe)' if row.number == 0 else ''}{' best' if row is best else ''}",
            *(written(row.values.get(name)) for name in names),
            worth(search.metric, row).removesuffix(" %"),
            str(row.steps),
            f"failed: {row.reason}" if row.reason else row.state,
            f"{row.seconds:.0f}",
        ]
        for row in rows
    ]
    return markdown(columns, cells)


def summary(search: Search, rows: Sequence[Row]) -> str:
    """The best trial beside the recipe, what its value is worth, and what to do next."""
    best = best_of(search.metric, rows)
    if best is None:
        return "No trial is complete."
    lines = [
        f"Best: trial {best.number}, validation {search.metric.name} {worth(search.metric, best)}"
    ]
    if best.number == 0:
        lines[0] += ", which is the recipe: no trial is better."
    else:
        recipe = next((row for row in rows if row.number == 0 and row.state == "complete"), None)
        lines[0] += (
            f" (recipe: {worth(search.metric, recipe)})."
            if recipe
            else " (the recipe is not complete)."
        )
        lines.append(f"Settings: {_values(search, best)}.")
    if shares := importances(search, rows):
        words = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        lines.append(f"Importance of the settings (PED-ANOVA): {words}.")
    measured = sum(not math.isnan(row.value) for row in rows)
    lines += [
        f"The {search.metric.best} of {measured} values on the same validation tasks is "
        "optimistic. Train with other seeds, and test:",
        f"  {next_command(search)}",
    ]
    return "\n".join(lines)


def next_command(search: Search) -> str:
    """Trains the recipe and the best settings with several seeds, and tests them."""
    request, best = search.request, search.folder / BEST_RECIPE
    words = ["fewshot-blo", "compare", str(request.source), str(best), "--seeds", "1", "2", "3"]
    words += ["--root", request.root] if request.root else []
    words += ["--max_steps", str(request.max_steps)] if request.max_steps else []
    return shlex.join([*words, "--folder", str(search.folder / "compare")])


def importances(search: Search, rows: Sequence[Row]) -> dict[str, float]:
    """The share of each setting in the variance of the metric; empty for few trials.

    Source: Watanabe et al., "PED-ANOVA", arXiv 2304.10255.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    values = {row.value for row in rows if row.state == "complete"}
    if sum(row.state == "complete" for row in rows) < _ENOUGH or len(values) < 2:
        return {}
    evaluator = PedAnovaImportanceEvaluator()
    return dict(get_param_importances(search.study, evaluator=evaluator))


def worth(metric: Quantity, row: Row) -> str:
    """A trial's value with its interval; a dash if there is none."""
    return "–" if math.isnan(row.value) else metric.text(row.value, row.interval)


def written(value: object) -> str:
    """A value of a setting, with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _values(search: Search, row: Row) -> str:
    return ", ".join(f"{a.name} {written(row.values.get(a.name))}" for a in search.space.axes)


def short(names: Sequence[str]) -> list[str]:
    """The shortest ends of dotted names that tell them apart."""
    found = []
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for other in names if other != name]
        found.append(next(e for e in ends if not any(f".{o}".endswith(f".{e}") for o in others)))
    return found
