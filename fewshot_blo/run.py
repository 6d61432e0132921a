"""A training run between two outer steps: what it is, and how it is saved and resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from fewshot_blo import checkpoint as checkpoints
from fewshot_blo.bilevel import OuterStep
from fewshot_blo.checkpoint import Checkpoint
from fewshot_blo.chunks import dropout_keys, hypergradient
from fewshot_blo.errors import CheckpointError, ConfigurationError, DivergenceError
from fewshot_blo.hypergrad import State, Strategy
from fewshot_blo.problems import FewShotProblem, NormMode
from tasks import TaskBatch

LAST, BEST = "last.pt", "best.pt"


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the outer loop.

    Attributes:
        steps: outer steps.
        learning_rate: of the outer optimizer, Adam.
        schedule: "cosine" lets the learning rate fall to zero over the steps.
        clip: largest norm of the hypergradient; larger ones are scaled down. 0 for no limit.
        norm: norm mode of the query set in training and validation.
        start: "cold" starts each inner problem anew; "warm" where the last batch's ended.
        chunk: tasks differentiated at a time; 0 measures how many fit into ``memory``.
        memory: GiB that one chunk may take on the host; on a GPU it is what is free.
        validate_every: outer steps between validations and checkpoints.
        validation_tasks: tasks of one validation.
        log_every: outer steps between log records.
        seed: of the dropout masks.
    """

    steps: int = 1000
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float = 10.0
    norm: NormMode = "transductive"
    start: Literal["cold", "warm"] = "cold"
    chunk: int = 0
    memory: float = 0.75
    validate_every: int = 250
    validation_tasks: int = 200
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "validate_every", "validation_tasks", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("clip", "chunk", "learning_rate", "memory"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: it is not negative")
        if self.norm == "running":
            raise ConfigurationError(
                "norm 'running' is for evaluation: its statistics are estimated after training; "
                "train with 'transductive' or 'support'"
            )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of outer step ``step``, counted from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass
class Run:
    """A run between two outer steps."""

    problem: FewShotProblem
    strategy: Strategy
    settings: TrainSettings
    folder: Path
    config: dict[str, Any]
    step: int = 0
    chunk: int = 1
    best: dict[str, Any] = field(default_factory=lambda: {"step": 0, "accuracy": -1.0})

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(list(self.problem.outer.values()))
        self.state: State = self.strategy.init()

    def update(self, batch: TaskBatch) -> OuterStep:
        """One outer step; changes the outer variables in place."""
        step = hypergradient(
            self.problem,
            self.strategy,
            self.state,
            batch,
            norm=self.settings.norm,
            chunk=self.chunk,
            keys=dropout_keys(batch, self.settings.seed, self.step),
        )
        try:
            step.check_finite(type(self.strategy).__name__)
        except DivergenceError as error:
            raise DivergenceError(f"outer step {self.step + 1}: {error}") from error
        for name, leaf in self.problem.outer.items():
            leaf.grad = step.gradient[name]
        leaves = list(self.problem.outer.values())
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(leaves, self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state = self.strategy.advance(self.state, step)
        self.state = state if self.settings.start == "warm" else state.cold()
        self.step += 1
        return step

    def save(self, name: str) -> None:
        """Writes a checkpoint into the run's folder."""
        checkpoints.save(
            Checkpoint(
                step=self.step,
                config=self.config,
                outer=self.problem.outer,
                buffers=dict(self.problem.network.named_buffers()),
                optimizer=self.optimizer.state_dict(),
                strategy=self.state,
                settled={"backend": self.problem.backend, "chunk": self.chunk},
                best=self.best,
                random_state=checkpoints.random_state(),
            ),
            self.folder / name,
        )

    def resume(self) -> None:
        """Continues from the run's last checkpoint."""
        device = next(iter(self.problem.outer.values())).device
        saved = checkpoints.load(self.folder / LAST, device)
        if saved.config != self.config:
            different = sorted(
                name
                for name in saved.config.keys() | self.config.keys()
                if saved.config.get(name) != self.config.get(name)
            )
            raise CheckpointError(
                f"{self.folder / LAST} is of another configuration: {different} differ; resume "
                "with the settings saved beside it, or choose another folder"
            )
        saved.restore(self.problem)
        self.optimizer.load_state_dict(dict(saved.optimizer))
        self.state = saved.strategy
        self.step, self.best = saved.step, dict(saved.best)
        self.chunk = saved.settled["chunk"]
        checkpoints.set_random_state(saved.random_state)
