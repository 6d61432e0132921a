"""The log record of an outer step: losses, metric, gradient norm, speed and memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from fewshot_blo.bilevel import OuterStep
from fewshot_blo.machine.memory import peak_resident_bytes
from fewshot_blo.objectives.tasks import on_query
from fewshot_blo.records.quantity import Quantity
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.run import Run
from fewshot_blo.training.step import dropout_keys


class Clock:
    """Measures tasks per second since the last reading."""

    def __init__(self) -> None:
        self._start, self._tasks = time.perf_counter(), 0

    def count(self, tasks: int) -> None:
        self._tasks += tasks

    def rate(self) -> float:
        now = time.perf_counter()
        rate = self._tasks / (now - self._start)
        self._start, self._tasks = now, 0
        return rate


def record_step(run: Run, batch: TaskBatch, step: OuterStep, clock: Clock) -> dict[str, Any]:
    """The log record of the step that is about to be taken."""
    squared = [g.square().sum() for g in step.gradient.values()]
    return {
        "step": run.step + 1,
        "loss/outer": float(step.outer_loss.mean()),
        "loss/inner": float(step.inner_loss.mean()),
        f"{run.metric.key}/train": _of_training(run, batch, step),
        "hypergradient/norm": float(torch.stack(squared).sum().sqrt()),
        "learning_rate": run.settings.learning_rate_at(run.step),
        "tasks_per_second": clock.rate(),
        "examples_per_step": int(batch.support_rows.sum() + batch.query_rows.sum()),
        "memory/peak_gib": peak_resident_bytes(batch.device) / 2**30,
        **{f"strategy/{name}": float(value) for name, value in run.state.schedules.items()},
        **({"graph": run.graphs.choice} if run.graphs else {}),
    }


@torch.no_grad()
def _of_training(run: Run, batch: TaskBatch, step: OuterStep) -> float:
    """The metric of the query sets at the step's inner parameters, on its first chunk of tasks."""
    own = len(next(iter(step.inner.values())))  # Several processes have a part each.
    part = batch[: min(run.chunk.size, own)]
    inner = {name: p[: part.tasks] for name, p in step.inner.items()}
    keys = dropout_keys(batch, run.settings.seed, run.step)[: part.tasks]
    outputs = run.problem.bind(part, run.settings.norm, keys).query_outputs(inner)
    return float(on_query(run.problem.metric, outputs, part).mean())


def progress_text(record: Mapping[str, Any], metric: Quantity) -> str:
    """The figures of a log record that the progress shows."""
    return (
        f"loss {record['loss/outer']:.3f}, {metric.name} {record[f'{metric.key}/train']:.3f}, "
        f"{record['tasks_per_second']:.1f} tasks/s"
    )
