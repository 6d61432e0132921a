"""Runs from other outer variables where a local solution was found."""

from __future__ import annotations

import time
from dataclasses import replace

from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import DivergenceError
from fewshot_blo.records.outer_loop import take_steps
from fewshot_blo.solving.concave import lower_along_concave
from fewshot_blo.solving.elsewhere import lower_elsewhere
from fewshot_blo.solving.points import move
from fewshot_blo.solving.problem import unstacked
from fewshot_blo.solving.run import SolveRun

_RESTARTS = 2
"""From other outer variables, where they have a lower outer loss than the solution."""


def improved(run: SolveRun, *, progress: bool) -> SolveRun:
    """The run, or one from other outer variables that led to a lower outer loss."""
    for _ in range(_RESTARTS):
        u = _lower(run)
        if u is None:
            return run
        here, _ = run.found()
        again = _restarted(run, u)
        try:
            interrupted = take_steps(
                again, steps=again.plan.steps, folder=None, title="solving", progress=progress
            )
        except DivergenceError:
            interrupted = True
        if interrupted or not again.converged or _outer_loss(again) >= _outer_loss(run):
            move(run.problem.outer, here)
            return run
        run = again
    return run


def _lower(run: SolveRun) -> dict[str, Tensor] | None:
    """Outer variables with a lower outer loss: anywhere where F has bends, else downhill."""
    if run.has_bends:
        sets = (run.outer_sets, run.inner_sets)
        return lower_elsewhere(run.problem, unstacked(run.state.inner), sets, run.limits)
    bilevel = run.bilevel()
    if bilevel.constraints is not None or run.problem.sampled:
        return None
    return lower_along_concave(bilevel, run.state.inner, run.outer_sets)


def _restarted(run: SolveRun, outer: Params) -> SolveRun:
    """A new run of the same problem from other outer variables, in the time that is left."""
    seconds = run.plan.seconds
    if seconds is not None:
        seconds = max(0.0, seconds - (time.monotonic() - run.began))
    move(run.problem.outer, outer)
    plan = replace(run.plan, seconds=seconds)
    again = SolveRun(run.problem, run.strategy, run.make_optimizer, run.sets, plan, None)
    again.start()
    return again


def _outer_loss(run: SolveRun) -> float:
    """F at the last outer step."""
    return float(run.history[-1]["loss/outer"])
