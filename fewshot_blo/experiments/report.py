"""Evaluates checkpoints on the same tasks, prints the figures and writes them to a JSON file."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from fewshot_blo.evaluation.result import Evaluation, paired_difference
from fewshot_blo.experiments.measuring import Measured, measure_together
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.machine.processes import joined
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.terminal import shown
from fewshot_blo.tasks.split import TaskSplits

logger = logging.getLogger(__name__)


def evaluate_checkpoints(
    paths: Sequence[Path],
    request: EvaluationRequest,
    splits: TaskSplits | None = None,
    *,
    allowed: Collection[str] = (),
    progress: bool = True,
) -> dict[str, list[Evaluation]]:
    """Evaluates each checkpoint on the same tasks in every norm mode, and prints the figures.

    Args:
        paths: files of the checkpoints.
        request: settings of the evaluation.
        splits: the data set of the checkpoints if it is loaded already; None loads it.
        allowed: networks of your own ("module:function") that may run in addition to the request's.
        progress: print the figures and show a progress bar, or lines if there is no terminal;
            False is silent.

    Returns:
        The evaluations of each checkpoint by path, one for each norm mode.

    Raises:
        CheckpointError: if a checkpoint cannot be read.
        ConfigurationError: if data sets or tasks of the checkpoints differ, all test classes are
            training classes, or a network of your own is not allowed.
    """
    say = partial(print, flush=True) if progress else logger.info
    measured = measure_together(paths, request, splits, allowed=allowed, say=say, progress=progress)
    joined().on_first(lambda: report(measured, request.output, progress=progress))
    return {path: list(found) for path, found in measured.evaluations.items()}


def report(measured: Measured, output: Path | None, *, progress: bool = True) -> None:
    """Prints the figures, and writes them to a JSON file.

    Args:
        measured: the evaluations.
        output: the file; None for none.
        progress: print the figures.
    """
    if progress:
        _print_tables(measured.evaluations)
    if output is not None:
        with atomic_write(output) as file:
            file.write(json.dumps(_plain(measured), indent=1).encode())


def _print_tables(results: Mapping[str, Sequence[Evaluation]]) -> None:
    first = next(iter(results))
    references = {evaluation.norm: evaluation for evaluation in results[first]}
    for path, evaluations in results.items():
        print(path)
        for evaluation in evaluations:
            print(f"  {evaluation.line}")
            reference = references.get(evaluation.norm)
            if path != first and reference is not None:
                mean, half = paired_difference(reference, evaluation)
                metric = evaluation.metric
                difference = f"{metric.difference(mean)} ± {metric.half(half)}"
                print(f"    {difference} minus {first}, same tasks")
            for text in evaluation.further:
                print(f"    {text}")
        if not evaluations[0].class_names:
            continue
        norm = evaluations[0].norm
        print(f"  hardest classes ({norm}): {shown(_hardest_classes(evaluations[0]))}")
        print(f"  most frequent confusions ({norm}): {shown(_confused_classes(evaluations[0]))}")
        errors = (f"{100 * e.calibration_error:.1f} % ({e.norm})" for e in evaluations)
        print(f"  calibration error: {', '.join(errors)}")


def _hardest_classes(evaluation: Evaluation, count: int = 5) -> str:
    order = evaluation.class_accuracy.argsort()[:count].tolist()
    return ", ".join(
        f"{evaluation.class_names[c]} {100 * float(evaluation.class_accuracy[c]):.0f} %"
        for c in order
    )


def _confused_classes(evaluation: Evaluation, count: int = 3) -> str:
    """The most frequent confusions: class, prediction, and their share of the class's queries."""
    counts = evaluation.counts
    names = dict(zip(counts.classes.tolist(), evaluation.class_names, strict=True))
    queries = dict(zip(names, counts.by_class()[1].tolist(), strict=True))
    wrong = [(n / queries[a], a, b) for a, b, n in counts.pairs.tolist() if a != b]
    wrong.sort(key=lambda pair: (-pair[0], *pair[1:]))
    found = [f"{names[a]} as {names[b]} {100 * share:.0f} %" for share, a, b in wrong[:count]]
    return ", ".join(found) or "none"


def _plain(measured: Measured) -> dict[str, object]:
    """The figures as plain data, with settings, digests, commit, versions and machine."""
    figures = {
        path: [
            {
                "norm": evaluation.norm,
                "protocol": evaluation.protocol,
                "metric": evaluation.metric.name,
                "tasks": len(evaluation.values),
                "mean": _number(evaluation.mean),
                "interval_95": _number(evaluation.interval),
                f"task_{evaluation.metric.key}": [*map(_number, evaluation.values.tolist())],
                **{
                    f"task_{m.key}": [*map(_number, values.tolist())]
                    for m, values in evaluation.others.items()
                },
                **_of_classes(evaluation),
            }
            for evaluation in evaluations
        ]
        for path, evaluations in measured.evaluations.items()
    }
    return {
        "provenance": measured.provenance,
        "settings": measured.settings,
        "digests": measured.digests,
        "checkpoints": figures,
    }


def _number(value: float) -> float | None:
    """A value; JSON has no NaN, which R2 is for equal targets, but null."""
    return None if math.isnan(value) else value


def _of_classes(evaluation: Evaluation) -> dict[str, object]:
    """Calibration, and the accuracy of each class; nothing for tasks without classes."""
    if not evaluation.class_names:
        return {}
    accuracy = zip(evaluation.class_names, evaluation.class_accuracy.tolist(), strict=True)
    return {
        "calibration_error": evaluation.calibration_error,
        "class_accuracy": dict(accuracy),
    }
