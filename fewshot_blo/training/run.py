"""``Run``: the state of a training run between outer steps; update, save and resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from fewshot_blo.bilevel import OuterStep
from fewshot_blo.errors import CheckpointError, ConfigurationError, DivergenceError
from fewshot_blo.hypergrad import State, Strategy
from fewshot_blo.kernel.graph import make_graphs
from fewshot_blo.kernel.stacked.fused import describe_kernels
from fewshot_blo.machine.chunk import Chunk
from fewshot_blo.machine.processes import ALONE, Processes
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.records.files import append_line, atomic_write
from fewshot_blo.records.provenance import launch, provenance
from fewshot_blo.records.quantity import Quantity
from fewshot_blo.records.tensor_files import BEST, LAST
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.checkpoint import Checkpoint
from fewshot_blo.training.exchange import gathered_state, own_state, step_of_all, task_to_compute
from fewshot_blo.training.outer_updates import MovingAverage, make_optimizer
from fewshot_blo.training.resumable import CONFIG, check_resumable, check_same_data, same_start
from fewshot_blo.training.settings import TrainSettings
from fewshot_blo.training.step import dropout_keys, hypergradient

__all__ = ["BEST", "LAST", "Run"]

PROVENANCE = "provenance.jsonl"


@dataclass
class Run:
    """The state of a training run between two outer steps.

    Attributes:
        problem: problem whose outer variables are trained in place.
        whole: strategy of the whole run; ``strategy`` is its phase at the next step.
        settings: settings of the outer loop.
        folder: folder of the run.
        config: all settings of the run as plain data, saved in checkpoints.
        origin: what the run was begun from, as in ``train``, saved in checkpoints.
        read_config: converts a checkpoint's ``config`` to today's form.
        step: number of outer steps taken.
        chunk: tasks differentiated at a time.
        best: step and value of the best validation so far.
        processes: those that compute the run together. Each has the outer variables, the
            optimizer, and the state of its own part of the tasks.

    Raises:
        ConfigurationError: if the strategy does not suit the problem, or ``settings.rates`` does
            not match the outer variables.
    """

    problem: FewShotProblem
    whole: Strategy
    settings: TrainSettings
    folder: Path
    config: dict[str, Any]
    read_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    origin: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    chunk: Chunk = field(default_factory=lambda: Chunk(1, "train.chunk"))
    best: dict[str, Any] = field(default_factory=lambda: {"step": 0})
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        self.whole = self.whole.for_training()
        self.best.setdefault("value", self.metric.worst)
        self.problem.check_suits(self.whole, self.settings.start)
        self.optimizer = make_optimizer(
            self.problem.outer,
            self.settings.optimizer,
            momentum=self.settings.momentum,
            weight_decay=self.settings.weight_decay,
            rates=self.settings.rates,
        )
        self.average = MovingAverage(self.settings.ema)
        self.state: State = self.strategy.init()
        device = next(iter(self.problem.outer.values())).device
        self.graphs = make_graphs(self.settings.graph, device)

    @property
    def metric(self) -> Quantity:
        """What validation measures."""
        return self.problem.metric.quantity

    @property
    def strategy(self) -> Strategy:
        """The strategy at the next outer step."""
        return self.whole.at(self.step)

    def hypergradient(self, batch: TaskBatch) -> OuterStep:
        """The hypergradient of the next outer step, without waiting for a GPU.

        Each process computes its part of the tasks, and receives the hypergradient and the losses
        of all.
        """
        own = self.processes.part(batch.tasks)
        computed = task_to_compute(own)
        step = hypergradient(
            self.problem,
            self.strategy,
            self.state if own == computed else self.state.cold(),
            batch[computed],
            norm=self.settings.norm,
            chunk=self.chunk,
            keys=dropout_keys(batch, self.settings.seed, self.step)[computed],
            graphs=self.graphs,
        )
        return step_of_all(step, own, batch.tasks, self.processes)

    def check_finite(self, step: OuterStep) -> None:
        """Checks that losses and hypergradient are finite.

        Raises:
            DivergenceError: if a loss or the hypergradient is not finite.
        """
        try:
            step.check_finite(type(self.strategy).__name__)
        except DivergenceError as error:
            remedy = "; if the losses grew over the outer steps, lower the outer learning rate"
            raise DivergenceError(f"outer step {self.step + 1}: {error}{remedy}") from error

    def update(self, step: OuterStep) -> None:
        """Takes the outer step: updates the outer variables in place, and the strategy's state."""
        for name, leaf in self.problem.outer.items():
            leaf.grad = step.gradient[name].clone()  # Clipping is in-place.
        leaves = list(self.problem.outer.values())
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(leaves, self.settings.clip)
        for group in self.optimizer.param_groups:
            rate = self.settings.learning_rate_at(self.step)
            group["lr"] = rate * group.get("factor", 1.0)  # Older checkpoints have none.
        self.optimizer.step()
        self.average.update(self.problem.outer, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        state = self.strategy.advance(self.state, step)
        self.state = state if self.settings.start == "warm" else state.cold()
        self.step += 1

    def save_config(self) -> None:
        """Writes the run's settings as ``config.yaml``, to be read or used as ``--config``.

        Raises:
            ConfigurationError: if ``config`` is not plain data, which a checkpoint cannot hold.
        """
        try:
            text = yaml.safe_dump(self.config, sort_keys=False)
        except yaml.YAMLError as error:
            raise ConfigurationError(
                f"config is not plain data ({error}): use numbers, strings, lists and dictionaries"
            ) from error
        with atomic_write(self.folder / CONFIG) as file:
            file.write(text.encode())

    def note_provenance(self) -> None:
        """Appends a line on command, code version and machine to ``provenance.jsonl``."""
        device = next(iter(self.problem.outer.values())).device
        count, started = self.processes.count, launch()
        shared = {"processes": str(count)} if count > 1 else {}
        shared |= {"launch": started} if started else {}
        origin = provenance(device, kernels=describe_kernels(device), **shared)
        append_line(self.folder / PROVENANCE, json.dumps({"from_step": self.step, **origin}))

    def save(self, name: str) -> None:
        """Writes a checkpoint into the run's folder, and the settings if they were removed.

        Called by all processes; the first one writes.
        """
        state = gathered_state(self.state, self.processes)
        self.processes.on_first(lambda: self._write(name, state))

    def _write(self, name: str, state: State) -> None:
        if not (self.folder / CONFIG).exists():
            self.save_config()
        checkpoints.save(
            Checkpoint(
                step=self.step,
                config=self.config,
                outer=self.problem.outer,
                buffers=dict(self.problem.network.named_buffers()),
                optimizer=self.optimizer.state_dict(),
                strategy=state.plain(),
                settled={
                    "backend": self.problem.backend,
                    "chunk": self.chunk.size,
                    "recompute": self.chunk.recompute,
                },
                best=self.best,
                random_state=checkpoints.random_state(),
                average=self.average.values,
                origin=self.origin,
            ),
            self.folder / name,
        )

    def load(self, name: str) -> Checkpoint:
        """A checkpoint of the run's folder, which the first process reads for all."""
        return self.processes.from_first(lambda: checkpoints.load(self.folder / name))

    def begin(self, chunk: Chunk) -> None:
        """Makes all processes start alike: variables, buffers, backend and chunk."""
        if self.processes.count == 1:
            self.chunk = chunk
            return
        tensors = (*self.problem.outer.values(), *self.problem.network.buffers())
        self.processes.make_same(tensors)
        self.problem.backend = self.processes.from_first(lambda: self.problem.backend)
        found = self.processes.collect(chunk)
        self.chunk = replace(
            min(found, key=lambda other: other.size),
            recompute=max((other.recompute for other in found), key=lambda way: way or False),
        )

    def resume(self) -> None:
        """Restores the state of the run's last checkpoint.

        Raises:
            CheckpointError: if there is none, or it was saved with settings that change any step,
                or was begun from other weights or data.
        """
        device = next(iter(self.problem.outer.values())).device
        saved = self.load(LAST)
        before, file = self.read_config(saved.config), self.folder / LAST
        extensible = self.settings.schedule == "constant"
        check_resumable(before, self.config, file, may_extend=extensible)
        check_same_data(saved.origin, self.origin, before, self.config, file)
        self.config = same_start(saved.origin, self.origin, before, self.config, file)
        self.origin = saved.origin
        if saved.step > self.settings.steps:
            raise CheckpointError(
                f"{self.folder / LAST} has taken {saved.step} steps, but train.steps is "
                f"{self.settings.steps}: set it to at least {saved.step}"
            )
        saved.restore(self.problem)
        self.optimizer.load_state_dict(dict(saved.optimizer))
        try:
            state = self.strategy.init().restored(saved.strategy, device)
        except (TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.folder / LAST} has the state of another strategy ({error}): resume with "
                f"the settings in {self.folder / CONFIG}"
            ) from error
        self.state = own_state(state, self.processes)
        self.step, self.best = saved.step, dict(saved.best)
        self.average.values = {name: p.to(device) for name, p in saved.average.items()}
        self.chunk.size = saved.settled["chunk"]
        self.chunk.recompute = saved.settled.get("recompute")  # Older checkpoints have none.
        checkpoints.set_random_state(saved.random_state)


def last_launch(folder: Path) -> str:
    """The call of ``torchrun`` that a run was begun or resumed by; empty if none is known."""
    try:
        lines = (folder / PROVENANCE).read_text(encoding="utf-8").splitlines()
        return str(json.loads(lines[-1]).get("launch", ""))
    except (OSError, ValueError, IndexError, AttributeError):
        return ""
