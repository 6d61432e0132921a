"""Short texts on tensors for ``repr``: shapes, dtypes, devices and sizes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_NAMED = 4


def kind(*tensors: Tensor) -> str:
    """Dtypes and devices, such as "float32 on cpu"."""
    return " and ".join(dict.fromkeys(kind_of(t.dtype, t.device) for t in tensors))


def kind_of(dtype: torch.dtype, device: torch.device) -> str:
    """Dtype and device, such as "float32 on cpu"."""
    return f"{str(dtype).removeprefix('torch.')} on {device}"


def shapes(tensors: Mapping[str, Tensor]) -> str:
    """Shapes by name, dtype and device, such as "weight [5, 64], bias [5], float32 on cpu".

    If there are more than four, the first three are named and the others counted.
    """
    if not tensors:
        return "none"
    first = list(tensors.items())[: _NAMED if len(tensors) <= _NAMED else _NAMED - 1]
    parts = [f"{name} {list(t.shape)}" for name, t in first]
    if len(tensors) > len(first):
        entries = sum(t.numel() for t in tensors.values())
        parts.append(f"{len(tensors) - len(first)} more ({entries:,} entries in all)")
    return ", ".join([*parts, kind(*tensors.values())])


def size(tensors: Mapping[str, Tensor]) -> str:
    """Number of tensors and entries, such as "8 tensors, 112,708 entries, float32 on cpu"."""
    if not tensors:
        return "none"
    entries = sum(t.numel() for t in tensors.values())
    plural = "" if len(tensors) == 1 else "s"
    return f"{len(tensors)} tensor{plural}, {entries:,} entries, {kind(*tensors.values())}"
