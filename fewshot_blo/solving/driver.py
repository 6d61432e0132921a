"""The driver for any bilevel problem: cold, warm or partial starts, constraints, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.hypergrad.strategy import check_start
from fewshot_blo.records.outer_loop import take_steps
from fewshot_blo.records.shapes import shapes
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.solving.run import FILE, Observe, Partial, Plan, SolveRun, Start, Validate

__all__ = ["FILE", "Observe", "Partial", "Solution", "Start", "Validate", "solve"]


@dataclass(frozen=True)
class Solution:
    """Where a bilevel problem was left.

    Attributes:
        outer: u by name, copies: those with the lowest held-out loss where there is one, else last.
        inner: v by name, that belong to them.
        history: records of this call with step, loss/outer, loss/inner, hypergradient/norm, what
            was observed and, where it was measured, loss/held_out.
        step: outer steps taken.
        interrupted: whether it was stopped before its last step, and can be resumed.
    """

    outer: Params
    inner: Mapping[str, Tensor]
    history: Sequence[Mapping[str, float]]
    step: int
    interrupted: bool

    def __repr__(self) -> str:
        ended = f"interrupted at step {self.step}" if self.interrupted else f"step {self.step}"
        last = self.history[-1]["loss/outer"] if self.history else math.nan
        return (
            f"Solution({ended}, {len(self.history)} records, last outer loss {last:.4g}\n"
            f"  outer: {shapes(self.outer)}\n  inner: {shapes(self.inner)})"
        )


def solve(
    problem: PlainProblem,
    strategy: Strategy,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    *,
    steps: int,
    start: Start = "warm",
    constraints: Mapping[str, Constraint] | None = None,
    validate: Validate | None = None,
    observe: Observe | None = None,
    patience: int = 0,
    every: int = 100,
    folder: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Solution:
    """Takes outer steps, each with the hypergradient of a strategy.

    An interrupt (Ctrl-C or SIGTERM) finishes the step, saves and returns.

    Args:
        problem: its outer variables change in place.
        strategy: how to compute hypergradients.
        optimizer: makes the outer optimizer, as ``partial(torch.optim.Adam, lr=0.1)`` does.
        steps: outer steps.
        start: of each inner problem. Multipliers of the penalty method go on in any case.
        constraints: sets that outer variables stay in, by name.
        validate: a held-out loss, which tells the best variables.
        observe: further figures of each record, which decide nothing.
        patience: records without a new lowest held-out loss after which to stop; 0 for never.
        every: outer steps between records, held-out losses and saves.
        folder: for ``last.pt``, a log and curves; none by default.
        resume: continue from ``last.pt`` of the folder, step for step as if never stopped.
        progress: show a progress bar, or lines where there is no terminal; False is silent.

    Raises:
        CheckpointError: if the folder holds another run, or there is nothing to resume.
        ConfigurationError: if a constraint is of no outer variable, settings make no sense, or the
            strategy needs a warm start.
        DivergenceError: if a loss or gradient is not finite.
    """
    _check(steps, every, patience, validate, folder, resume=resume)
    check_start(strategy, start)
    place = None if folder is None else Path(folder)
    run = SolveRun(
        problem,
        strategy,
        optimizer(list(problem.outer.values())),
        dict(constraints or {}),
        Plan(steps, start, validate, observe, patience, every),
        place,
    )
    if place is not None:
        run.open(resume=resume)
    interrupted = take_steps(run, steps=steps, folder=place, title="solving", progress=progress)
    outer, inner = run.found()
    return Solution(outer, inner, run.history, run.step, interrupted)


def _check(
    steps: int,
    every: int,
    patience: int,
    validate: Validate | None,
    folder: Path | str | None,
    *,
    resume: bool,
) -> None:
    if steps < 1 or every < 1 or patience < 0:
        raise ConfigurationError(
            f"steps is {steps} and every {every}, which must be positive, and patience "
            f"{patience}, which must be at least 0"
        )
    if patience and validate is None:
        raise ConfigurationError(f"patience is {patience}: it needs validate, a held-out loss")
    if resume and folder is None:
        raise ConfigurationError("there is nothing to resume: name the folder of the run")
