"""The driver for any bilevel problem: cold, warm or partial starts, constraints, resume."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError, NotSolvedError, NotSolvedWarning
from fewshot_blo.hypergrad import Implicit, Strategy
from fewshot_blo.hypergrad.strategy import check_start
from fewshot_blo.records.checked import checked
from fewshot_blo.records.locks import writing
from fewshot_blo.records.loggers import Logger
from fewshot_blo.records.outer_loop import take_steps
from fewshot_blo.records.ranges import Counting, Natural, Positive
from fewshot_blo.records.shapes import shapes
from fewshot_blo.solving.certificate import Certificate
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.plan import Observe, Plan, Validate
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.solving.restarts import improved
from fewshot_blo.solving.run import SolveRun
from fewshot_blo.solving.saved import FILE
from fewshot_blo.solving.starts import Partial, Start, starts_cold

__all__ = ["FILE", "Observe", "Partial", "Solution", "Start", "Validate", "solve"]

MOST_OUTER_STEPS = 2000
"""Largest number of outer steps where only convergence ends them."""

_TOLERANCE, _FLOAT32_TOLERANCE = 1e-7, 1e-5


@dataclass(frozen=True)
class Solution:
    """Where a bilevel problem was left.

    Attributes:
        outer: u by name, copies: those with the lowest held-out loss where there is one, else last.
        inner: v by name: those that the held-out loss was measured with; without one, and where u
            has not converged, those at the outer variables before the last step.
        history: records of this call with step, loss/outer, loss/inner, hypergradient/norm, the
            figures of a certificate, what was observed and, where it was measured, loss/held_out.
        step: outer steps taken.
        interrupted: whether it was stopped before its last step, and can be resumed.
        converged: whether outer steps have become short, and the certificate has no doubts.
        certificate: measured at the last outer step.
        multipliers: of ``outer_equalities`` and ``outer_inequalities``, by name.
        chosen: settings of the strategy that were unset, as they were chosen.
    """

    outer: Params
    inner: Mapping[str, Tensor]
    history: Sequence[Mapping[str, float]]
    step: int
    interrupted: bool
    converged: bool
    certificate: Certificate | None
    multipliers: Mapping[str, Tensor]
    chosen: Mapping[str, Any]

    def __repr__(self) -> str:
        ended = f"interrupted at step {self.step}" if self.interrupted else f"step {self.step}"
        ended = f"converged at step {self.step}" if self.converged else ended
        last = self.history[-1]["loss/outer"] if self.history else math.nan
        return (
            f"Solution({ended}, {len(self.history)} records, last outer loss {last:.4g}\n"
            f"  outer: {shapes(self.outer)}\n  inner: {shapes(self.inner)})"
        )


@checked
def solve(
    problem: PlainProblem,
    strategy: Strategy | None = None,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
    *,
    steps: Counting | None = None,
    tolerance: Positive | None = None,
    seconds: Positive | None = None,
    start: Start | None = None,
    constraints: Mapping[str, Constraint] | None = None,
    validate: Validate | None = None,
    observe: Observe | None = None,
    patience: Natural = 0,
    every: Counting = 100,
    folder: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
    loggers: Sequence[Logger] = (),
) -> Solution:
    """Takes outer steps, each with the hypergradient of a strategy.

    What is not named is chosen: settings of the strategy, the outer step size, and the number of
    outer steps, which then end by ``tolerance``. A solution is a local one; where the inner problem
    has constraints, u is small and there is no folder, 24 other u are looked at, and steps start
    anew, at most twice, from one with a lower outer loss. An interrupt (Ctrl-C, SIGTERM or
    SIGHUP) finishes the step, saves and returns.

    Args:
        problem: its outer variables change in place.
        strategy: how to compute hypergradients; by default Implicit.
        optimizer: makes the outer optimizer, as ``partial(torch.optim.Adam, lr=0.1)`` does; by
            default gradient descent with step sizes from the curvature that it meets. Must be
            named for mini-batches and for strategies that take few steps over v (SOBA, AmIGO).
        steps: outer steps; by default until the problem is solved, and at most 2000. Likewise.
        tolerance: length of an outer step relative to ``1 + |u|``, three of which in a row end the
            run where the certificate has no doubts; by default, without ``steps``, 1e-7 in float64
            and 1e-5 in float32, and none with them.
        seconds: after which no further outer step begins; None for no limit.
        start: of each inner problem; by default warm, and cold for strategies that differentiate
            the start. Multipliers of the penalty method go on in any case.
        constraints: sets that variables, outer or inner ones, stay in, by name; a name that both
            levels have is that of the outer one.
        validate: a held-out loss, which tells the best variables; like the losses of a record, at
            those that the step was taken from.
        observe: further figures of each record, which decide nothing; likewise.
        patience: records without a new lowest held-out loss after which to stop; 0 for never.
        every: outer steps between records, held-out losses and saves; the first step and every ten
            minutes without a save are followed by one, too. With named steps and no tolerance,
            multipliers of outer constraints move at least so often, and more often at first.
        folder: for ``last.pt``, a log and curves; none by default.
        resume: continue from ``last.pt`` of the folder, step for step as if never stopped.
        progress: show a progress bar, or lines where there is no terminal; False is silent.
        loggers: further loggers beside the log of the folder.

    Raises:
        CheckpointError: if the folder holds another run, another process writes to it, or there is
            nothing to resume.
        ConfigurationError: if a constraint is of no variable, the strategy is not right with those
            of the inner problem or needs a warm start, or settings make no sense.
        DivergenceError: if a loss or gradient is not finite, or a loss grows beyond all bounds.
        NotSolvedError: if no ``steps`` are named and the problem is not solved in the end; its
            attribute ``solution`` has what was found.
    """
    strategy = Implicit() if strategy is None else strategy
    _check(patience, validate, folder, resume=resume, logs=bool(loggers))
    check_start(strategy, "cold" if starts_cold(start) else start)
    _check_named(problem, strategy, steps, optimizer, patience)
    place = None if folder is None else Path(folder)
    most = MOST_OUTER_STEPS if steps is None else steps
    start = ("cold" if strategy.learns_start else "warm") if start is None else start
    if tolerance is None and steps is None:
        double = all(p.dtype == torch.float64 for p in problem.outer.values())
        tolerance = _TOLERANCE if double else _FLOAT32_TOLERANCE
    plan = Plan(most, start, validate, observe, patience, every, tolerance, seconds)
    with nullcontext() if place is None else writing(place):
        run = SolveRun(problem, strategy, optimizer, dict(constraints or {}), plan, place)
        if resume:
            run.resume()
        else:
            run.start()
        interrupted = take_steps(
            run,
            steps=most,
            folder=place,
            title="solving",
            progress=progress,
            loggers=loggers,
            settings=plan.plain() | {"strategy": repr(strategy)},
        )
    if run.converged and steps is None and place is None:
        run = improved(run, progress=progress)
    outer, inner = run.found()
    solution = Solution(
        outer,
        inner,
        run.history,
        run.step,
        interrupted,
        run.converged,
        run.certificate,
        run.limits.multipliers,
        run.chosen,
    )
    if not (interrupted or run.converged):
        _say_doubts(run, solution, must_solve=steps is None)
    elif run.converged and run.certificate is not None:
        for sentence in run.certificate.ambiguities():
            warnings.warn(sentence, NotSolvedWarning, stacklevel=2)
    return solution


def _say_doubts(run: SolveRun, solution: Solution, *, must_solve: bool) -> None:
    """An error where a solution was asked for; a warning where v is not what it should be."""
    method = type(run.strategy).__name__
    found, chosen = run.certificate, run.strategy.inner.left_open
    doubts = [] if found is None else found.doubts(strict=must_solve, chosen=chosen)
    if method == Implicit.__name__:
        doubts = [doubt.removesuffix(", or use Implicit") for doubt in doubts]
    if must_solve and not run.best:
        if run.out_of_time:
            doubts = [*doubts, f"the {run.plan.seconds} seconds are over"]
        doubts = doubts or [
            f"outer steps go on: u is about {run.watch.distance:.2g} from a stationary point "
            "(relative to 1 + |u|); name steps for more of them, or another strategy"
        ]
        raise NotSolvedError(
            f"{method}: not solved after {solution.step} outer steps: {'; '.join(doubts)}",
            solution,
        )
    if doubts:
        warnings.warn(f"{method}: {'; '.join(doubts)}", NotSolvedWarning, stacklevel=3)


def _check_named(
    problem: PlainProblem,
    strategy: Strategy,
    steps: int | None,
    optimizer: object,
    patience: int,
) -> None:
    """What cannot be chosen must be named."""
    if strategy.follows:
        why = f"{type(strategy).__name__} takes few steps over v in an outer step"
    elif problem.sampled:
        why = "the losses are of mini-batches"
    else:
        return
    example = "falling(partial(torch.optim.SGD, lr=0.1), 0.5)"
    if optimizer is None:
        raise ConfigurationError(
            f"{why}, so that no outer learning rate is chosen: name an optimizer, such as {example}"
        )
    if steps is None and not patience:
        raise ConfigurationError(
            f"{why}, so that convergence is not measured: name steps, or patience with validate"
        )
    if problem.inner_sampled and (strategy.inner.rule is None or strategy.inner.steps is None):
        raise ConfigurationError(
            "the inner loss is of mini-batches, of which no curvature is measured: name the steps "
            "and the rule of the strategy's inner problem, such as InnerSteps(10, SGD(0.1))"
        )


def _check(
    patience: int,
    validate: Validate | None,
    folder: Path | str | None,
    *,
    resume: bool,
    logs: bool,
) -> None:
    if patience and validate is None:
        raise ConfigurationError(f"patience is {patience}: it needs validate, a held-out loss")
    if resume and folder is None:
        raise ConfigurationError("there is nothing to resume: name the folder of the run")
    if logs and folder is None:
        raise ConfigurationError(
            "loggers go on with the log of a folder: name the folder of the run"
        )
