"""``TrainSettings``: settings of the outer loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.graph import GraphMode
from fewshot_blo.problems import NormMode
from fewshot_blo.records.checked import checked
from fewshot_blo.records.loggers.named import check_names
from fewshot_blo.records.ranges import Counting, Decay, Natural, NonNegative


@checked
@dataclass(frozen=True)
class TrainSettings:
    """Settings of the outer loop.

    Attributes:
        steps: number of outer steps; 0 validates and keeps the initial variables.
        learning_rate: learning rate of the outer optimizer.
        optimizer: outer optimizer: adam (AdamW), or sgd with Nesterov momentum.
        momentum: momentum of the outer optimizer sgd.
        weight_decay: weight decay of the outer optimizer; decoupled for adam (AdamW).
        schedule: learning rate schedule; cosine and linear decay to zero over the steps.
        clip: norm to which a longer hypergradient is shortened; 0 for no limit.
        norm: norm mode of the query set in training and validation.
        start: start of the inner problems: cold resets them for each batch, warm continues from
            the inner parameters of the previous batch.
        chunk: number of tasks differentiated at a time; 0 chooses by measurement the fastest that
            fits into ``memory``, together with whether to keep or recompute the graphs of inner
            steps if the strategy leaves that open. It is lowered if memory runs out.
        memory: memory in GiB that one chunk may use on the CPU; 0 for half of the free memory,
            which several processes on one host share. Chunks on a GPU use up to four fifths of its
            free memory.
        graph: capture of a chunk's GPU kernels as a CUDA graph and its replay, which saves launch
            time; auto replays if that measures faster.
        validate_every: number of outer steps between validations, each of which saves.
        save_minutes: minutes after a save at which another one is due, besides those at the first
            step and at validations; 0 for none by time.
        validation_tasks: number of tasks in a validation.
        log_every: number of outer steps between log records.
        seed: seed of the dropout masks.
        ema: decay of an exponential moving average of the outer variables, which validation and
            ``best.pt`` use; 0 for none.
        rates: learning rate factors by group of outer variables (encoder, head, start, step_sizes,
            regularisation, classifier) or by a part of one, such as encoder/blocks.3; 1 for others.
        loggers: further loggers beside log.jsonl and TensorBoard's events: CSV, WeightsAndBiases,
            MLflow or module:Name of your own; one with settings is written as {name: CSV, file:
            table.csv}.

    Raises:
        ConfigurationError: if a setting is out of range, or there is no such logger.
    """

    steps: Natural = 200
    learning_rate: NonNegative = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: Decay = 0.9
    weight_decay: NonNegative = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip: NonNegative = 10.0
    norm: NormMode = "transductive"
    start: Literal["cold", "warm"] = "cold"
    chunk: Natural = 0
    memory: NonNegative = 0.0
    graph: GraphMode = "auto"
    validate_every: Counting = 100
    save_minutes: NonNegative = 10.0
    validation_tasks: Counting = 200
    log_every: Counting = 10
    seed: Natural = 0
    ema: Decay = 0.0
    rates: dict[str, NonNegative] = field(default_factory=dict)
    loggers: tuple[str | dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_names(self.loggers)
        if self.norm == "running":
            raise ConfigurationError(
                "norm is 'running', which is for evaluation: running statistics are estimated "
                "after training; train with 'transductive' or 'support'"
            )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of outer step ``step``, counted from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "linear":
            return self.learning_rate * (1 - step / self.steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
