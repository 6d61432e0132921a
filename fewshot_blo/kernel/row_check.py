"""Whether the rows of a batch mix in a forward pass, outside of batch norms' statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.forward import Forward
from fewshot_blo.kernel.proof import Sample
from fewshot_blo.tasks.inputs import Inputs, each, one_of

Run = Callable[[Inputs, Tensor], Tensor]
"""Outputs for inputs ``[T, B, ...]``, with batch statistics of the rows of a mask ``[T, B]``."""

MIXED_ROWS = (
    "the network mixes the rows of a batch outside of PyTorch's batch norm layers, and tasks of "
    "this batch are padded: padded rows would change the others; give tasks of equally many rows, "
    "a batch for each size, or use nn.BatchNorm1d or 2d, whose statistics leave padded rows out"
)


@torch.no_grad()
def rows_mix(forward: Forward, sample: Sample) -> bool:
    """Whether outputs of some rows change when others are replaced.

    Batch norms use running statistics meanwhile; where there are none, statistics of the rows that
    are not replaced. Random numbers are those of the sample's keys in all passes.

    Args:
        forward: forward pass of the network, by any backend.
        sample: parameters and inputs; with fewer than two rows nothing can be found.
    """
    few = sample.small()

    def running(x: Inputs, rows: Tensor) -> Tensor:
        return forward(few.params, few.shared, x, running=True, keys=few.keys)

    def of_rows(x: Inputs, rows: Tensor) -> Tensor:
        return forward(few.params, few.shared, x, rows=rows, keys=few.keys)

    try:
        return _any_change(running, few.x)
    except ConfigurationError:
        return _any_change(of_rows, few.x)


def _any_change(run: Run, x: Inputs) -> bool:
    tasks, size = one_of(x).shape[:2]
    half = size // 2
    if half == 0:
        return False
    for kept in (range(size - half), range(half, size)):
        rows = torch.zeros(tasks, size, dtype=torch.bool, device=one_of(x).device)
        rows[:, kept.start : kept.stop] = True
        outputs = run(x, rows), run(each(lambda p, rows=rows: _replaced(p, rows), x), rows)
        if _differ(*(output[:, kept.start : kept.stop] for output in outputs)):
            return True
    return False


def _replaced(x: Tensor, rows: Tensor) -> Tensor:
    """``x`` with copies of the first row of the mask in place of rows outside of it."""
    first = int(rows[0].int().argmax())
    chosen = rows.reshape(*rows.shape, *[1] * (x.ndim - 2))
    return torch.where(chosen, x, x[:, first : first + 1])


def _differ(a: Tensor, b: Tensor) -> bool:
    """Beyond rounding; rows that do not mix are computed by the same operations."""
    tolerance = torch.finfo(a.dtype).eps ** 0.5
    finite = a[a.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return not torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
