"""A run of the driver between two outer steps: its variables, and what resuming needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fewshot_blo.bilevel import OuterStep, Params, TaskParams
from fewshot_blo.errors import CheckpointError, ConfigurationError, DivergenceError
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.records.logs import RunLog
from fewshot_blo.records.older import state_of_strategy
from fewshot_blo.records.outer_loop import Taken
from fewshot_blo.records.tensor_files import read_tensors, write_tensors
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.problem import PlainProblem, unstacked

FILE = "last.pt"
_FORMAT = "solve 1"


@dataclass(frozen=True)
class Partial:
    """Between cold and warm: the inner problem starts near where the last one ended.

    Attributes:
        every: outer steps between cold starts; 0 for none.
        keep: weight of the last inner parameters in the start; the rest is the problem's own start.

    Raises:
        ConfigurationError: if a setting is outside its range.
    """

    every: int = 0
    keep: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 0 or not 0 <= self.keep <= 1:
            raise ConfigurationError(
                f"Partial: every is {self.every} and must be at least 0, keep is {self.keep} and "
                "must be in [0, 1]"
            )


Start = Literal["cold", "warm"] | Partial
"""Where an inner problem starts: anew, where the last one ended, or in between.

Source: Vicol et al., "On Implicit Bias in Overparameterized Bilevel Optimization" (arXiv
2212.14032), algorithms 1 and 2.
"""

Validate = Callable[[Params, Mapping[str, Tensor]], float]
"""``(u, v)`` to a held-out loss; lower is better."""

Observe = Callable[[Params, Mapping[str, Tensor]], Mapping[str, float]]
"""``(u, v)`` to figures by name."""


@dataclass(frozen=True)
class Plan:
    """How far a run goes, and what is measured on the way; arguments as of ``solve``."""

    steps: int
    start: Start
    validate: Validate | None
    observe: Observe | None
    patience: int
    every: int


@dataclass
class SolveRun:
    """A run between two outer steps."""

    problem: PlainProblem
    strategy: Strategy
    optimizer: torch.optim.Optimizer
    constraints: Mapping[str, Constraint]
    plan: Plan
    folder: Path | None
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    records_since_best: int = 0
    history: list[Mapping[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.constraints) - set(self.problem.outer))
        if unknown:
            raise ConfigurationError(
                f"there is a constraint for '{unknown[0]}', which is no outer variable; they are "
                f"{', '.join(self.problem.outer)}"
            )
        self.state = self.strategy.init()
        self._project()

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or the held-out loss has not fallen for long enough."""
        waited = 0 < self.plan.patience <= self.records_since_best
        return self.step >= self.plan.steps or waited

    def begin(self, log: RunLog | None) -> Taken:
        """Nothing is due before the first step."""
        del log
        return Taken()

    def take(self, log: RunLog | None) -> Taken:
        """One outer step, with a record of every so many."""
        step = self._step()
        if self.step % self.plan.every and self.step < self.plan.steps:
            return Taken()
        record = self._record(step)
        self.history.append(record)
        if log is not None:
            log.write({**record, "seconds": log.seconds()})
        self.save_last()
        return Taken(f"outer loss {record['loss/outer']:.4g}")

    def _step(self) -> OuterStep:
        bilevel = self.problem.at(self.step)
        strategy = self.strategy.at(self.step)
        state = replace(self.state, inner=self._start(self.plan.start, bilevel.inner_init))
        step = strategy.hypergradient(bilevel, state)
        try:
            step.check_finite(type(strategy).__name__)
        except DivergenceError as error:
            raise DivergenceError(f"outer step {self.step + 1}: {error}") from error
        for name, leaf in self.problem.outer.items():
            leaf.grad = step.gradient[name].clone()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._project()
        self.state = strategy.advance(self.state, step)
        self.step += 1
        return step

    def _start(self, start: Start, init: TaskParams) -> TaskParams:
        """Where the inner problem starts; empty for its own start."""
        last: TaskParams = self.state.inner
        if start == "cold" or not last:
            return {}
        if start == "warm":
            return last
        if start.every and self.step % start.every == 0:
            return {}
        return {name: torch.lerp(init[name], p, start.keep) for name, p in last.items()}

    @torch.no_grad()
    def _project(self) -> None:
        for name, constraint in self.constraints.items():
            leaf = self.problem.outer[name]
            leaf.copy_(constraint.project(leaf))

    def _record(self, step: OuterStep) -> dict[str, float]:
        """Losses of the step, and what is measured of the variables that it led to."""
        squared = sum(float(g.double().square().sum()) for g in step.gradient.values())
        record = {
            "step": self.step,
            "loss/outer": float(step.outer_loss),
            "loss/inner": float(step.inner_loss),
            "hypergradient/norm": squared**0.5,
        }
        outer, inner = self._variables()
        if self.plan.observe is not None:
            record |= self.plan.observe(outer, inner)
        if self.plan.validate is not None:
            record["loss/held_out"] = float(self.plan.validate(outer, inner))
            self.records_since_best += 1
            if not self.best or record["loss/held_out"] < self.best["loss"]:
                self.records_since_best = 0
                self.best = {"loss": record["loss/held_out"], "outer": outer, "inner": inner}
        return record

    def _variables(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        outer = {name: p.detach().clone() for name, p in self.problem.outer.items()}
        return outer, unstacked(self.state.inner)

    def found(self) -> tuple[Params, Params]:
        """The best variables where a held-out loss tells, else the last."""
        return (self.best["outer"], self.best["inner"]) if self.best else self._variables()

    def open(self, *, resume: bool) -> None:
        """Makes the folder, or takes up the run that it holds."""
        assert self.folder is not None
        path = self.folder / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            if path.exists():
                raise CheckpointError(
                    f"{path.parent} already holds a run: resume it, or choose another folder"
                )
            return
        # On the host: the optimizer puts its state where it wants it, and counts steps there.
        saved = read_tensors(path, "checkpoint")
        device = next(iter(self.problem.outer.values())).device
        kinds = {name: list(p.shape) for name, p in self.problem.outer.items()}
        try:
            found = {name: list(p.shape) for name, p in saved["outer"].items()}
            if saved["format"] != _FORMAT or found != kinds:
                raise CheckpointError(
                    f"{path} is of a problem with the outer variables {found}, and this one has "
                    f"{kinds}: choose another folder"
                )
            with torch.no_grad():
                for name, p in saved["outer"].items():
                    self.problem.outer[name].copy_(p)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.state = self.strategy.init().restored(state_of_strategy(saved["state"]), device)
            self.step = saved["step"]
            self.best = tree_map_only(Tensor, lambda x: x.to(device), saved["best"])
            self.records_since_best = saved["records_since_best"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"{path} lacks a part of a run of solve ({error}): choose another folder"
            ) from error

    def save_last(self) -> None:
        """Writes all that the run needs to go on, where it has a folder."""
        if self.folder is None:
            return
        content = {
            "format": _FORMAT,
            "step": self.step,
            "outer": {name: p.detach() for name, p in self.problem.outer.items()},
            "optimizer": self.optimizer.state_dict(),
            "state": self.state.plain(),
            "best": self.best,
            "records_since_best": self.records_since_best,
        }
        write_tensors(content, self.folder / FILE, "checkpoint")
