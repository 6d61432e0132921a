"""The setting that turns the fused kernels on or off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_fused: ContextVar[bool | None] = ContextVar("fused_kernels", default=None)


@contextmanager
def fused_kernels(wanted: bool) -> Iterator[None]:
    """Inside, forward passes fuse convolution, norm, ReLU and pooling where kernels exist, or not.

    Only the forward pass reads the setting; its derivatives use the same kernels as it did.
    """
    token = _fused.set(wanted)
    try:
        yield
    finally:
        _fused.reset(token)


def are_wanted(device: torch.device) -> bool:
    """Whether the fused kernels are to be used; without a setting, on the CPU only."""
    wanted = _fused.get()
    return device.type == "cpu" if wanted is None else wanted
