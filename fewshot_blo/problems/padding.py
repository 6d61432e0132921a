"""Inputs of padded rows: networks may be undefined at zero, where they are padded."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fewshot_blo.tasks import TaskBatch
from fewshot_blo.tasks.inputs import Inputs, each


def repeated(batch: TaskBatch) -> TaskBatch:
    """The tasks with inputs of a real row in padded rows, in place of zeros.

    Masks leave these rows out of losses and statistics, but a NaN, as of ``h / h.norm(dim=1)`` at
    zero, would reach the gradient nevertheless.

    Args:
        batch: the tasks. A set without any real row stays as it is.
    """
    if not batch.padded:
        return batch
    filled = replace(
        batch,
        support_x=_filled(batch.support_x, batch.support_rows),
        query_x=_filled(batch.query_x, batch.query_rows),
    )
    return filled.known(padded=True)


def _filled(inputs: Inputs, rows: Tensor) -> Inputs:
    """Inputs ``[T, B, ...]`` with the task's first real row in rows outside of a mask."""
    first = rows.int().argmax(1)
    tasks = torch.arange(len(rows), device=rows.device)

    def of(x: Tensor) -> Tensor:
        real = rows.reshape(*rows.shape, *[1] * (x.ndim - 2))
        return torch.where(real, x, x[tasks, first].unsqueeze(1))

    return each(of, inputs)
