"""``measure``: evaluates checkpoints on the same tasks, or on a part of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.evaluation.parts import merge
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.experiments.data import build_device, build_outputs, build_sampler
from fewshot_blo.experiments.history import History, history_of
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.published import digest_of_measured
from fewshot_blo.experiments.request import (
    EvaluationRequest,
    check_comparable,
    drawn_from,
    evaluation_settings,
    requested,
)
from fewshot_blo.experiments.saved import saved_settings
from fewshot_blo.experiments.settings import Config
from fewshot_blo.experiments.unseen import NO_HISTORIES, as_trained, unseen
from fewshot_blo.kernel.stacked.fused import describe_kernels
from fewshot_blo.machine.processes import joined
from fewshot_blo.problems.few_shot import norm_modes
from fewshot_blo.records.jobs import run_jobs
from fewshot_blo.records.provenance import provenance, provenance_of_all
from fewshot_blo.records.shard import Shard, by_all
from fewshot_blo.tasks.split import Split, TaskSplits
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.checkpoint import Checkpoint

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """Evaluations of checkpoints, and what is reported beside them.

    Attributes:
        evaluations: those of each checkpoint by path, one for each norm mode.
        notes: sentences on classes and images that were said.
        provenance: command, versions and machine.
        settings: ``evaluation_settings`` of the request.
        digests: ``digest_of_measured`` of each checkpoint by path.
    """

    evaluations: Mapping[str, Sequence[Evaluation]]
    notes: Sequence[str]
    provenance: Mapping[str, str | int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def measure(
    paths: Sequence[Path],
    request: EvaluationRequest,
    splits: TaskSplits | None = None,
    *,
    allowed: Collection[str] = (),
    beside: Mapping[Path, Config] | None = None,
    histories: Mapping[Path, History] = NO_HISTORIES,
    shard: Shard | None = None,
    say: Say,
    progress: bool,
) -> Measured:
    """Evaluates each checkpoint on the same tasks in every norm mode.

    Args:
        paths: files of the checkpoints.
        request: settings of the evaluation.
        splits: the data set of the checkpoints if it is loaded already; None loads it.
        allowed: networks of your own ("module:function") that may run in addition to the request's.
        beside: settings of further runs of a comparison, whose training classes are left out, too.
        histories: what those runs and their starts were trained on.
        shard: the part of the tasks that is evaluated; None for all.
        say: called with sentences on classes and images.
        progress: show progress.

    Raises:
        CheckpointError: if a checkpoint cannot be read.
        ConfigurationError: if data sets or tasks of the checkpoints differ, all test classes are
            training classes, a network of your own is not allowed, or the shard has no task.
    """
    loaded = {path: checkpoints.load(path) for path in paths}
    trusted = (*allowed, request.network)
    runs = {p: saved_settings(loaded[p].config, str(p), trusted) for p in paths}
    configs = {path: requested(runs[path], request) for path in paths}
    check_comparable(configs)
    first = configs[paths[0]]
    splits = splits or first.data.load()
    notes: list[str] = []

    def note(sentence: str) -> None:
        notes.append(sentence)
        say(sentence)

    known = {**histories, **{path: history_of(loaded[path]) for path in paths}}
    dataset = unseen({**(beside or {}), **runs}, request, splits, note, known)
    found = {}
    for path in paths:
        images = as_trained(path, runs[path], dataset, note)
        found[str(path)] = _evaluate(loaded[path], configs[path], images, request, shard, progress)
    device = build_device(first)
    made = provenance(device, kernels=describe_kernels(device))
    digests = {str(path): digest_of_measured(loaded[path]) for path in paths}
    return Measured(found, notes, made, evaluation_settings(request), digests)


def measure_together(
    paths: Sequence[Path],
    request: EvaluationRequest,
    splits: TaskSplits | None = None,
    *,
    allowed: Collection[str] = (),
    say: Say,
    progress: bool,
) -> Measured:
    """As ``measure``; each process of PyTorch's process group, if there is one, evaluates a part.

    All of them read the checkpoints and the data.

    Raises:
        ProcessError: if another process has failed.
    """
    processes = joined()

    def of(shard: Shard | None) -> Measured:
        shown = progress and processes.is_first
        return measure(
            paths, request, splits, allowed=allowed, shard=shard, say=say, progress=shown
        )

    return by_all(processes, request.tasks, of, merged)


def measure_by_jobs(
    paths: Sequence[Path],
    request: EvaluationRequest,
    *,
    jobs: int,
    say: Say,
    progress: bool,
) -> Measured:
    """As ``measure``, by processes of this machine that evaluate a part of the tasks each.

    Raises:
        ChildProcessError: if a job was killed.
    """
    count = min(jobs, request.tasks)
    shards = [Shard(number, count) for number in range(1, count + 1)]
    make = partial(_measure_of, paths, request, progress)
    parts = [part for _, part in run_jobs(make, shards, count, progress=progress)]
    whole = merged(parts)
    for sentence in whole.notes:
        say(sentence)
    return whole


def _measure_of(
    paths: Sequence[Path], request: EvaluationRequest, progress: bool
) -> Callable[[Shard], Measured]:
    def of(shard: Shard) -> Measured:
        return measure(paths, request, shard=shard, say=lambda _: None, progress=progress)

    return of


def merged(parts: Sequence[Measured]) -> Measured:
    """The evaluations of all tasks from those of all parts, in any order.

    Raises:
        ConfigurationError: if parts are missing or given twice, or are of different evaluations.
    """
    first = parts[0]
    for other in parts[1:]:
        if [*other.evaluations] != [*first.evaluations]:
            raise ConfigurationError(
                f"the parts are of different checkpoints ({', '.join(first.evaluations)} and "
                f"{', '.join(other.evaluations)}): evaluate all parts with one command, apart from "
                "shard"
            )
    counts = [[len(e) for e in part.evaluations.values()] for part in parts]
    if any(count != counts[0] for count in counts):
        raise ConfigurationError(
            "the parts differ in their norm modes: evaluate all parts with one command, apart from "
            "shard"
        )
    evaluations = {
        path: [merge(own) for own in zip(*(part.evaluations[path] for part in parts), strict=True)]
        for path in first.evaluations
    }
    for path, digest in first.digests.items():
        if any(part.digests.get(path) != digest for part in parts):
            raise ConfigurationError(
                f"{path} was changed between the parts: evaluate all of them again"
            )
    made = provenance_of_all([part.provenance for part in parts])
    return Measured(evaluations, first.notes, made, first.settings, first.digests)


def _evaluate(
    checkpoint: Checkpoint,
    config: Config,
    split: Split,
    request: EvaluationRequest,
    shard: Shard | None,
    progress: bool,
) -> list[Evaluation]:
    outputs = build_outputs(config, split)
    problem = build_problem(config, split.shape, outputs=outputs, trained=False)
    checkpoint.restore(problem)
    sampler = build_sampler(config, split, training=False)
    differing = norm_modes(problem)
    norms = differing if request.norm == "all" else (request.norm,)
    found = [
        evaluate(
            problem,
            sampler,
            tasks=request.tasks,
            norm=norm,
            adaptation=config.adaptation,
            chunk=request.chunk,
            views=request.views,
            metrics=request.measured(),
            shard=shard,
            progress=progress,
        )
        for norm in norms
    ]
    return [replace(evaluation, drawn_from=drawn_from(request)) for evaluation in found]
