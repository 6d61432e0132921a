"""Evaluates checkpoints on the same tasks, prints the figures and writes them to a JSON file."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from fewshot_blo.backbones.encoders import own
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.evaluation.result import Evaluation, paired_difference
from fewshot_blo.experiments.data import build_device, build_sampler
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.request import EvaluationRequest, check_comparable, requested
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.experiments.unseen import as_trained, unseen
from fewshot_blo.kernel.stacked.fused import describe_kernels
from fewshot_blo.problems.few_shot import norm_modes
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.provenance import provenance
from fewshot_blo.records.terminal import shown
from fewshot_blo.tasks import ClassDataset, Splits
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


def evaluate_checkpoints(
    paths: Sequence[Path],
    request: EvaluationRequest,
    splits: Splits | None = None,
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
    loaded = {path: checkpoints.load(path) for path in paths}
    runs = {path: _saved(path, loaded[path], request, allowed) for path in paths}
    configs = {path: requested(runs[path], request) for path in paths}
    check_comparable(configs)
    first = configs[paths[0]]
    splits = splits or first.data.load()
    say = partial(print, flush=True) if progress else logger.info
    dataset = unseen(runs, request, splits, say)
    results = {}
    for path in paths:
        images = as_trained(path, runs[path], dataset, say)
        results[str(path)] = _evaluate(loaded[path], configs[path], images, request, progress)
    if progress:
        _print_tables(results)
    if request.output is not None:
        with atomic_write(request.output) as file:
            file.write(json.dumps(_plain(results, first), indent=1).encode())
    return results


def _saved(
    path: Path, checkpoint: Checkpoint, request: EvaluationRequest, allowed: Collection[str]
) -> Config:
    """The settings of a run, after checking that its network may be built."""
    saved = checkpoint.config
    if "problem" not in saved:
        raise CheckpointError(
            f"{path} was saved without a configuration (train(..., config=None)): build the "
            "problem yourself, load the checkpoint, restore it and call evaluate"
        )
    try:
        config = config_from(saved)
    except (ConfigurationError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} has settings that are unknown to this version "
            f"({' '.join(str(error).split())}): evaluate it with the version that trained it"
        ) from error
    function = config.encoder.settings.get("function", "")
    if config.encoder.kind is own and function not in (*allowed, request.network):
        raise ConfigurationError(
            f"building the network of {path} would call '{function}': if you trust this function, "
            f"allow it (network {function})"
        )
    return config


def _evaluate(
    checkpoint: Checkpoint,
    config: Config,
    dataset: ClassDataset,
    request: EvaluationRequest,
    progress: bool,
) -> list[Evaluation]:
    problem = build_problem(config, dataset.images.shape[1:], trained=False)
    checkpoint.restore(problem)
    sampler = build_sampler(config, dataset, training=False)
    differing = norm_modes(problem)
    norms = differing if request.norm == "all" else (request.norm,)
    return [
        evaluate(
            problem,
            sampler,
            tasks=request.tasks,
            norm=norm,
            adaptation=config.adaptation,
            chunk=request.chunk,
            views=request.views,
            progress=progress,
        )
        for norm in norms
    ]


def _print_tables(results: dict[str, list[Evaluation]]) -> None:
    first = next(iter(results))
    for path, evaluations in results.items():
        print(path)
        for evaluation, reference in zip(evaluations, results[first], strict=False):
            print(f"  {evaluation}")
            if path != first and evaluation.norm == reference.norm:
                mean, half = paired_difference(reference, evaluation)
                print(f"    {100 * mean:+.2f} ± {100 * half:.2f} minus {first}, same tasks")
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


def _plain(results: dict[str, list[Evaluation]], config: Config) -> dict[str, object]:
    """The figures as plain data, with commit, versions and machine."""
    figures = {
        path: [
            {
                "norm": evaluation.norm,
                "protocol": evaluation.protocol,
                "tasks": len(evaluation.accuracy),
                "mean": evaluation.mean,
                "interval_95": evaluation.interval if len(evaluation.accuracy) > 1 else None,
                "calibration_error": evaluation.calibration_error,
                "task_accuracy": evaluation.accuracy.tolist(),
                "class_accuracy": dict(
                    zip(evaluation.class_names, evaluation.class_accuracy.tolist(), strict=True)
                ),
            }
            for evaluation in evaluations
        ]
        for path, evaluations in results.items()
    }
    device = build_device(config)
    origin = provenance(device, kernels=describe_kernels(device))
    return {"provenance": origin, "checkpoints": figures}
