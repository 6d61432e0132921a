"""A run of the driver between two outer steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fewshot_blo.bilevel import Bilevel, OuterStep, Params
from fewshot_blo.errors import DivergenceError
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.hypergrad.strategy import check_constraints
from fewshot_blo.records.logs import RunLog
from fewshot_blo.records.older import state_of_strategy
from fewshot_blo.records.outer_loop import Taken
from fewshot_blo.solving.certificate import Certificate
from fewshot_blo.solving.chosen import chosen_optimizer, said
from fewshot_blo.solving.constraints import Constraint, by_level
from fewshot_blo.solving.descent import Backtracking
from fewshot_blo.solving.limits import OuterLimits
from fewshot_blo.solving.measured import measured, record_of
from fewshot_blo.solving.plan import MakeOptimizer, Plan
from fewshot_blo.solving.points import copies, move, projected
from fewshot_blo.solving.problem import PlainProblem, unstacked
from fewshot_blo.solving.saved import read_run, start_folder, write_run
from fewshot_blo.solving.starts import starting_point
from fewshot_blo.solving.watch import SHORT_STEPS, Watch

_MOST_LOOKS, _LOOKS_OF_BENDS = 12, 4
"""Doubted looks that end a run, and as how many one counts where F has bends."""

_NEAR, _SOLVED = 1e-4, 1e-3
"""Relative distances of u to a stationary point: of a converged run, and where multipliers move."""


@dataclass
class SolveRun:
    """A run between two outer steps."""

    problem: PlainProblem
    strategy: Strategy
    make_optimizer: MakeOptimizer | None
    sets: Mapping[str, Constraint]
    plan: Plan
    folder: Path | None
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    records_since_best: int = 0
    history: list[Mapping[str, float]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    certificate: Certificate | None = None
    converged: bool = False
    state: Any = None
    measuring: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.outer_sets, self.inner_sets = by_level(
            self.sets, self.problem.outer, self.problem.inner
        )
        self.limits = OuterLimits.of(self.problem)
        self.watch = Watch(self.plan.tolerance)
        self.out_of_time, self.futile = False, 0
        self.seen: tuple[Params, Mapping[str, Tensor]] = ({}, {})
        self._project()
        self.origin = copies(self.problem.outer)
        self.optimizer: torch.optim.Optimizer
        self.chosen_optimizer: Backtracking | None = None
        if self.make_optimizer is not None:
            self.optimizer = self.make_optimizer(list(self.problem.outer.values()))
            return
        chosen = chosen_optimizer(self.problem, self.bilevel(), self.strategy, self.outer_sets)
        self.chosen_optimizer = self.optimizer = chosen

    @property
    def finished(self) -> bool:
        """Whether it has converged, or steps, time or patience are spent."""
        waited = 0 < self.plan.patience <= self.records_since_best
        ended = self.converged or self.futile >= _MOST_LOOKS or self.out_of_time
        return ended or self.step >= self.plan.steps or waited

    def bilevel(self) -> Bilevel:
        """The problem of the next outer step, with the multipliers of the outer constraints."""
        bilevel = self.limits.added_to(self.problem).at(self.step, self.inner_sets)
        check_constraints(self.strategy, bilevel)
        return bilevel

    def begin(self, log: RunLog | None) -> Taken:
        """Says what was chosen."""
        del log
        return Taken(line=said(self.chosen, self.strategy, self.chosen_optimizer))

    def take(self, log: RunLog | None) -> Taken:
        """One outer step, with a record of every so many."""
        step = self._step()
        if self.step % self.plan.every and not self.finished:
            return Taken()
        if self.certificate is not None:  # The step has moved u.
            left = self.limits.violation_at(self.problem, unstacked(self.state.inner))
            self.certificate = replace(self.certificate, outer_violation=left)
        record = self._record(step)
        self.history.append(record)
        if log is not None:
            log.write({**record, "seconds": log.seconds() - self.measuring})
        self.save_last()
        return Taken(f"outer loss {record['loss/outer']:.4g}", saved=True)

    def _step(self) -> OuterStep:
        limit = self.plan.seconds
        self.out_of_time = limit is not None and time.monotonic() - self.began > limit
        bilevel = self.bilevel()
        strategy = self.strategy.at(self.step)
        start = starting_point(self.plan.start, self.state.inner, bilevel.inner_init, self.step)
        anew = strategy.follows and not start  # A dual starts with v; multipliers go on.
        state = self.state.cold() if anew else replace(self.state, inner=start)
        try:
            step = strategy.hypergradient(bilevel, state)
            name, chosen = type(strategy).__name__, strategy.inner.left_open
            self.watch.check(step, self.step + 1, name, chosen=chosen)
        except DivergenceError:
            optimizer = self.chosen_optimizer
            if optimizer is None or not optimizer.can_take_back:
                raise
            optimizer.take_back()
            return self._step()
        self.seen = copies(self.problem.outer), unstacked(step.inner)
        if self.chosen_optimizer and self.limits.lost(self.problem, unstacked(step.inner)):
            move(self.problem.outer, self.origin)
            self.chosen_optimizer.restart()
            self.step, self.state = self.step + 1, self.strategy.init()
            return step
        self.watch.before(self.problem.outer, step.gradient, self.outer_sets)
        self.watch.coarseness = self.strategy.coarseness(self.state, bilevel)
        changed = self._certify(bilevel, step)
        if self.chosen_optimizer is not None and (changed or self.converged):
            self.chosen_optimizer.restart()  # Another loss has to be seen here before a step.
            self.step += 1
            self.state = strategy.advance(self.state, step)
            return step
        for name, leaf in self.problem.outer.items():
            leaf.grad = step.gradient[name].clone()
        taken = True
        if self.chosen_optimizer is None:
            self.optimizer.step()
        else:
            taken = self.chosen_optimizer.step(loss=float(step.outer_loss))
        self.optimizer.zero_grad(set_to_none=True)
        self._project()
        self.step += 1
        if taken:  # Else the variables are between those of two steps before, as is all else.
            self.state = strategy.advance(self.state, step)
            self.watch.after(self.problem.outer, self.step)
            self._update_limits()
        return step

    def _update_limits(self) -> None:
        """Moves multipliers of outer constraints where it is time and convergence not watched."""
        own, left_to_steps = self.chosen_optimizer, self.plan.tolerance is None
        solved = not self.problem.sampled and self.watch.distance <= _SOLVED
        if left_to_steps and self.limits.updated_when_due(
            self.problem, self.seen, self.step, self.plan.every, solved=solved, adapts=bool(own)
        ):
            self.watch.start_anew()
            if own is not None:
                own.restart()

    def _certify(self, bilevel: Bilevel, step: OuterStep) -> bool:
        """Measures u and its v where a record is due, and where u seems to have converged.

        Returns:
            Whether F is another function from here on: with other multipliers, or less smoothed.
        """
        stalls = 0 if self.chosen_optimizer is None else self.chosen_optimizer.stalls
        finer = self.strategy.refined(self.state) if bilevel.constraints else None
        looks, most_stalls = (SHORT_STEPS, 2) if finer is None else (1, 1)
        near = 0 if self.has_bends else self.watch.near  # Curvature jumps at bends.
        maybe = stalls >= most_stalls or max(self.watch.short, near) >= looks
        last = self.step + 1 >= self.plan.steps or self.out_of_time
        if (maybe and not finer) or last or (self.step + 1) % self.plan.every == 0:
            begun = time.monotonic()
            self.certificate = measured(
                bilevel,
                step,
                self.outer_sets,
                self.strategy,
                sampled=self.problem.sampled,
                last=last,
                ends=maybe and not finer,
                bends=self.has_bends,
                violation=self.limits.violation_at(self.problem, unstacked(step.inner)),
                origin=self.origin,
            )
            self.measuring += time.monotonic() - begun
        return maybe and self._refine(finer, step)

    @property
    def has_bends(self) -> bool:
        """Whether F may have sharp bends as a function of u, and several local solutions."""
        return self.chosen_optimizer is not None and self.chosen_optimizer.for_bends

    def _refine(self, finer: Any, step: OuterStep) -> bool:
        """Goes on with better multipliers and less smoothing, or ends."""
        self.watch.short = self.watch.near = 0
        met = self.limits.update(self.problem, unstacked(step.inner))
        self.state = finer or self.state
        if finer or not met:
            return True
        assert self.certificate is not None
        doubts = self.certificate.doubts(strict=True)
        near = not math.isnan(self.certificate.outer_distance) or self.watch.distance <= _NEAR
        self.converged = near and not doubts
        if not self.converged:  # Steps of another length may show a way down.
            self.futile += _LOOKS_OF_BENDS if self.has_bends else 1
            if self.chosen_optimizer is not None and not self.has_bends:
                self.chosen_optimizer.restart()
        return False

    def _project(self) -> None:
        move(self.problem.outer, projected(self.problem.outer, self.outer_sets))

    def _record(self, step: OuterStep) -> dict[str, float]:
        """Losses of the step, and what is measured of the variables that it was taken from."""
        record = record_of(step, self.step, self.certificate)
        record |= self.limits.figures(self.problem, unstacked(step.inner))
        (outer, inner), begun = self.seen, time.monotonic()
        if self.plan.observe is not None:
            record |= self.plan.observe(outer, inner)
        if self.plan.validate is not None:
            record["loss/held_out"] = float(self.plan.validate(outer, inner))
            self._compare(record["loss/held_out"], outer, inner)
        self.measuring += time.monotonic() - begun
        return record

    def _compare(self, loss: float, outer: Params, inner: Params) -> None:
        """Keeps the variables with the lowest held-out loss; NaN is none."""
        self.records_since_best += 1
        if not math.isnan(loss) and (not self.best or loss < self.best["loss"]):
            self.records_since_best = 0
            self.best = {"loss": loss, "outer": outer, "inner": inner}

    def found(self) -> tuple[Params, Params]:
        """The best variables where a held-out loss tells, else the last."""
        if self.best:
            return self.best["outer"], self.best["inner"]
        return copies(self.problem.outer), unstacked(self.state.inner)

    def start(self) -> None:
        """Begins anew, with the weights of the strategy chosen that are unset."""
        if self.folder is not None:
            start_folder(self.folder)
        settled = self.strategy.settled(self.bilevel())
        for item in fields(settled):  # type: ignore[arg-type]
            value = getattr(settled, item.name)
            if value != getattr(self.strategy, item.name):
                self.chosen[item.name] = value
        self.strategy, self.state = settled, settled.init()

    def resume(self) -> None:
        """Takes up the run that the folder holds."""
        assert self.folder is not None
        outer = self.problem.outer
        device = next(iter(outer.values())).device
        with read_run(self.folder, outer) as saved:
            move(outer, saved["outer"])
            # It moves its state to where the variables are, and counts steps on the host.
            self.optimizer.load_state_dict(saved["optimizer"])
            self.chosen = saved.get("chosen", {})
            self.strategy = replace(self.strategy, **self.chosen)  # type: ignore[type-var]
            state = state_of_strategy(saved["state"])
            self.state = self.strategy.init().restored(state, device)
            self.step = saved["step"]
            self.best = tree_map_only(Tensor, lambda x: x.to(device), saved["best"])
            self.records_since_best = saved["records_since_best"]
            self.watch.restore(saved.get("watch", {}), device)
            self.limits.restore(saved.get("limits", {}), device)

    def save_last(self) -> None:
        """Writes all that the run needs to go on, where it has a folder."""
        if self.folder is None:
            return
        content = {
            "step": self.step,
            "outer": {name: p.detach() for name, p in self.problem.outer.items()},
            "optimizer": self.optimizer.state_dict(),
            "chosen": self.chosen,
            "state": self.state.plain(),
            "best": self.best,
            "records_since_best": self.records_since_best,
            "watch": self.watch.plain(),
            "limits": self.limits.plain(),
        }
        write_run(self.folder, content)
