"""``fewshot-blo check``."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isnan
from pathlib import Path
from typing import Any, Literal

from fewshot_blo.checks.backends import TOLERANCE, Comparison, check_kernel
from fewshot_blo.checks.device import DeviceCheck, check_device
from fewshot_blo.checks.hypergradient import measure_hypergradient
from fewshot_blo.checks.inner import inner_losses
from fewshot_blo.checks.precisions import measure_precisions
from fewshot_blo.commands.loading import load
from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError, StructuralZeroError
from fewshot_blo.experiments.data import build_outputs, build_sampler
from fewshot_blo.experiments.settings import SLOTS, Config
from fewshot_blo.experiments.training import build_start, with_classes
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.kernel.conversion import converted_layers
from fewshot_blo.kernel.stacked.fused import describe_kernels
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.problems.few_shot import norm_modes
from fewshot_blo.records.checked import checked
from fewshot_blo.records.provenance import provenance
from fewshot_blo.records.ranges import Counting
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.tasks.split import Split
from fewshot_blo.training import checkpoint as checkpoints

_FEW = 3
"""Queries a class in the comparison of all strategies, norm modes and backends."""


@checked
@dataclass(frozen=True)
class CheckRequest:
    """What to check: the kernel against a plain loop over your own network, in float64, by every
    strategy and norm mode; every precision; the strategy's hypergradient; the inner loss from step
    to step; and tasks a second on the device, beside plain loops.

    Attributes:
        check_tasks: tasks to compare on.
        checkpoint: weights to check at, a file written by train, of a problem with these settings;
            without it those that training starts from.
    """

    check_tasks: Counting = 3
    checkpoint: Path | None = None


OPTIONS = Options((Config, CheckRequest), slots=SLOTS, files=True)


def run(config: Config, request: CheckRequest) -> int:
    """Runs it; returns the exit status."""
    splits = load(config.data)
    config = with_classes(config, splits)
    config = replace(config, episodes=replace(config.episodes, tasks=request.check_tasks))
    _, strategy = config.strategy.phases[-1]
    norm, rule = config.train.norm, strategy.inner.update_rule(plain=False)
    make = _maker(config, splits.train, request.checkpoint)
    config64 = replace(config, dtype="float64")
    batch = build_sampler(config64, splits.train, training=True).batch(0)
    few = replace(config.episodes, query=min(config.episodes.query, _FEW))
    few_queries = build_sampler(replace(config64, episodes=few), splits.train, training=True)

    device = batch.device
    machine = provenance(device)
    print(f"{machine['device']}, torch {machine['torch']}, Python {machine['python']}")
    problem = make("float64", precision="float32")
    print(_preparation(problem, batch))
    comparisons = check_kernel(
        lambda backend: make("float64", backend=backend, precision="float32"),
        strategy,
        few_queries.batch(0),
        rule=rule,
        norms=norm_modes(problem),
    )
    for comparison in comparisons:
        print(_line(comparison), flush=True)
    errors = measure_precisions(
        lambda dtype, precision: make(dtype, precision=precision), strategy, batch, norm=norm
    )
    print("error against float64      loss  hypergradient  seconds (float64)")
    for error in errors:
        times = f"{error.seconds:.3f} ({error.float64_seconds:.3f})"
        print(f"{error.precision:21} {error.loss:10.1e} {error.hypergradient:14.1e} {times:>18}")
    print(f"kernels: {describe_kernels(batch.device)}")
    print(_against_exact(problem, strategy, batch, norm))
    losses = inner_losses(problem, batch, strategy.inner, norm=norm)
    print(_course(losses.mean(1).tolist()))
    found = check_device(device)
    print(_device_lines(found))
    replays = found.replayed is None or found.replayed <= TOLERANCE
    return 0 if replays and all(c.agrees or c.reason for c in comparisons) else 1


def _device_lines(found: DeviceCheck) -> str:
    """Agreement of replayed steps, and tasks a second."""
    lines = []
    if found.replayed is not None:
        verdict = "agrees" if found.replayed <= TOLERANCE else "DIFFERS"
        lines.append(f"step replayed from recorded kernels: {found.replayed:.1e}  {verdict}")
    lines.append("tasks a second, Conv4-64 on 28x28, 5-way 1-shot, second order through 5 steps:")
    ours = found.speeds[0].tasks_per_second
    for speed in found.speeds:
        figure = "-" if isnan(speed.tasks_per_second) else f"{speed.tasks_per_second:.4g}"
        ratio = (
            "" if isnan(speed.tasks_per_second) else f"{speed.tasks_per_second / ours:.3g} of ours"
        )
        lines.append(f"  {speed.name:28} {figure:>8} {ratio:16} {speed.remark}".rstrip())
    return "\n".join(lines)


def _preparation(problem: FewShotProblem, batch: TaskBatch) -> str:
    """Which layers compute otherwise than the user's, and which backend was taken and why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        problem.prepare(batch)
    counts = Counter(converted_layers(problem.network).values())
    layers = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
    reasons = "".join(f"\n{warning.message}" for warning in caught)
    return f"layers that the kernel computes itself: {layers}\nbackend: {problem.backend}{reasons}"


def _line(comparison: Comparison) -> str:
    what = f"{comparison.quantity:45} {comparison.norm:12} {comparison.backend:8}"
    if comparison.reason:
        return f"{what} not run: {comparison.reason}"
    return f"{what} {comparison.difference:.1e}  {'agrees' if comparison.agrees else 'DIFFERS'}"


def _maker(config: Config, split: Split, checkpoint: Path | None) -> Callable[..., FewShotProblem]:
    """Makes the problem in a dtype, with other settings of the kernel, always with one start."""
    trained = None if checkpoint is None else checkpoints.load(checkpoint)

    def make(dtype: Literal["float32", "float64"], **settings: Any) -> FewShotProblem:
        changed = replace(config, dtype=dtype, problem=config.problem.changed(**settings))
        problem = build_start(
            changed, split.shape, outputs=build_outputs(config, split), resume=trained is not None
        )
        if trained is not None:
            backend = problem.backend
            trained.restore(problem)
            problem.backend = backend  # The one to check, whichever the run had.
        return problem

    return make


def _against_exact(
    problem: FewShotProblem, strategy: Strategy, batch: TaskBatch, norm: NormMode
) -> str:
    """How good the strategy's hypergradients are, or why that cannot be said, as a sentence."""
    if set(strategy.sees) == {"start"}:
        return f"{type(strategy).__name__} takes no gradient of a loss"
    try:
        error = measure_hypergradient(problem, strategy, batch, norm=norm)
    except (ConfigurationError, StructuralZeroError) as reason:
        return f"no exact hypergradient to compare with: {reason}"
    return (
        f"hypergradient {error.angle:.2g} degrees from that of the solved inner problem, "
        f"{error.length:.3g} times as long"
    )


def _course(losses: list[float]) -> str:
    """The inner loss from step to step, and a remedy where it rises."""
    course = "inner loss from step to step: " + " ".join(f"{loss:.4g}" for loss in losses)
    rounding = 1e-12
    rises = sum(b - a > rounding * abs(a) for a, b in pairwise(losses))
    if not rises:
        return course
    return (
        f"{course}\nit rises in {rises} of {len(losses) - 1} steps, which are too long then: lower "
        "their step size"
    )
