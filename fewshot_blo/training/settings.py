"""Settings of the outer loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.graph import GraphMode
from fewshot_blo.problems import NormMode


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the outer loop.

    Attributes:
        steps: outer steps; with 0 the start is validated and kept.
        learning_rate: learning rate of the outer optimizer.
        optimizer: outer optimizer: adam, or sgd with Nesterov's momentum.
        momentum: momentum of the outer optimizer sgd.
        weight_decay: weight decay of the outer optimizer; Adam's is decoupled from the gradient
            (AdamW).
        schedule: schedule of the learning rate; cosine lets it fall to zero over the steps.
        clip: largest norm of the hypergradient; larger ones are scaled down. 0 for no limit.
        norm: norm mode of the query set in training and validation.
        start: where inner problems start; cold starts each anew, warm where the last batch's ended.
        chunk: tasks differentiated at a time; 0 measures, together with whether graphs of inner
            steps are kept where the strategy leaves that open, what is fastest in ``memory``.
            Fewer from the first time that memory runs out.
        memory: GiB that one chunk may take on the host; 0 for half of what is free. On a GPU it is
            four fifths of what is free.
        graph: whether a GPU records the kernels of a chunk and replays them, without the host in
            between; auto does so where a replay measures faster.
        validate_every: outer steps between validations and checkpoints.
        validation_tasks: tasks of one validation.
        log_every: outer steps between log records.
        seed: seed of the dropout masks.
        ema: decay of a moving average of the outer variables, which validation and ``best.pt``
            take; 0 for none.
        rates: factors of the learning rate by group of outer variables (encoder, head, start,
            step_sizes, regularisation, classifier) or a part of one, as encoder/blocks.3; 1 for
            others.
    """

    steps: int = 200
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float = 10.0
    norm: NormMode = "transductive"
    start: Literal["cold", "warm"] = "cold"
    chunk: int = 0
    memory: float = 0.0
    graph: GraphMode = "auto"
    validate_every: int = 100
    validation_tasks: int = 200
    log_every: int = 10
    seed: int = 0
    ema: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("validate_every", "validation_tasks", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in (
            "steps",
            "clip",
            "chunk",
            "learning_rate",
            "memory",
            "momentum",
            "weight_decay",
        ):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: it is not negative")
        if not 0 <= self.ema < 1:
            raise ConfigurationError(f"ema is {self.ema}: it is a decay below 1, or 0 for none")
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
