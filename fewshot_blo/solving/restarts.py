"""Runs from other outer variables where a local solution was found."""

from __future__ import annotations

import time
from dataclasses import replace

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import DivergenceError
from fewshot_blo.records.outer_loop import take_steps
from fewshot_blo.solving.elsewhere import lower_elsewhere
from fewshot_blo.solving.points import move
from fewshot_blo.solving.problem import unstacked
from fewshot_blo.solving.run import SolveRun

_RESTARTS = 2
"""From other outer variables, where they have a lower outer loss than the solution."""


def improved(run: SolveRun, *, progress: bool) -> SolveRun:
    """The run, or one from other outer variables that led to a lower outer loss.

    Without bends of F as a function of u it stays as it is.
    """
    if not run.has_bends:
        return run
    for _ in range(_RESTARTS):
        sets = (run.outer_sets, run.inner_sets)
        u = lower_elsewhere(run.problem, unstacked(run.state.inner), sets, run.limits)
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
