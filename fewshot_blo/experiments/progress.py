"""The validations of compared runs over the examples and the seconds that training took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from fewshot_blo.records.curves import Curve, Panel, curve_figure
from fewshot_blo.records.figure import save_figure
from fewshot_blo.records.logs import LOG, read_log
from fewshot_blo.records.quantity import Quantity

EXAMPLES = "examples_per_step"


class Validation(NamedTuple):
    """A validation of a run.

    Attributes:
        step: outer steps before it.
        value: mean over validation tasks.
        seconds: wall time of the outer steps, without that of validations.
        examples: support and query examples of the outer steps; None if the log has no number.
    """

    step: int
    value: float
    seconds: float
    examples: float | None


def draw_validations(runs: Mapping[str, Sequence[Path]], path: Path, metric: Quantity) -> bool:
    """Draws validations of training runs over examples and over seconds, as a PNG.

    Args:
        runs: checkpoints of each method, one a training seed, beside the logs of their runs.
        path: file of the figure.
        metric: what was validated.

    Returns:
        Whether any run has validations: if not, nothing is drawn.
    """
    found = {}
    for name, checkpoints in runs.items():
        logs = [read_log(checkpoint.parent / LOG) for checkpoint in checkpoints]
        found[name] = over_seeds([validations(log, metric) for log in logs])
    found = {name: points for name, points in found.items() if points}
    if not found:
        return False
    by_examples, by_seconds = {}, {}
    for name, points in found.items():
        values = [metric.factor * point.value for point in points]
        seen = [point.examples for point in points if point.examples is not None]
        is_counted = len(seen) == len(points)
        by_examples[name] = Curve(seen, values) if is_counted else Curve([], [])
        by_seconds[name] = Curve([point.seconds for point in points], values)
    label = f"validation {metric.label}"
    sides = [
        Panel(by_examples, "support and query examples (count)", label, "by examples"),
        Panel(by_seconds, "wall time of outer steps (s)", label, "by time"),
    ]
    save_figure(curve_figure(f"{label.capitalize()} during training", sides), path)
    return True


def over_seeds(runs: Sequence[Sequence[Validation]]) -> list[Validation]:
    """The mean over training seeds at each step that all of them have."""
    by_step = [{validation.step: validation for validation in run} for run in runs]
    shared = set.intersection(*map(set, by_step)) if by_step else set()
    return [_mean([run[step] for run in by_step]) for step in sorted(shared)]


def validations(log: Sequence[Mapping[str, Any]], metric: Quantity) -> list[Validation]:
    """Validations of a run, with what its outer steps took until then.

    The time between two records is that of outer steps, but before a validation that of the
    validation, with that of the steps since the last record.
    """
    found: list[Validation] = []
    spent = before = 0.0
    examples = examples_by_step(log)
    for record in log:
        seconds = record.get("seconds", before)
        value = record.get(f"{metric.key}/validation")
        if value is None:
            spent += seconds - before
        else:
            step = record["step"]
            found.append(Validation(step, value, spent, examples.get(step)))
        before = seconds
    return found


def examples_by_step(log: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Support and query examples until each step of a log.

    A record has the number of its own outer step, which stands for those since the last record:
    sizes of tasks may be drawn anew at each step.

    Returns:
        The count by step, as far as the log has it: logs of earlier versions have no number.
    """
    found: dict[int, float] = {}
    total, before = 0.0, 0
    each: float | None = None
    for record in log:
        each = record.get(EXAMPLES, each)
        if each is not None:
            total += each * (record["step"] - before)
            found[record["step"]] = total
        before = record["step"]
    return found


def _mean(many: Sequence[Validation]) -> Validation:
    counts = [validation.examples for validation in many if validation.examples is not None]
    return Validation(
        many[0].step,
        mean(validation.value for validation in many),
        mean(validation.seconds for validation in many),
        mean(counts) if len(counts) == len(many) else None,
    )
