"""Whether forward passes use the fused kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_fused: ContextVar[bool | None] = ContextVar("fused_kernels", default=None)


@contextmanager
def fused_kernels(wanted: bool) -> Iterator[None]:
    """Blocks of convolution, norm, ReLU and pooling run as one, where there are kernels, or not.

    It is the forward pass that looks: what it has computed is differentiated as it was computed.
    """
    token = _fused.set(wanted)
    try:
        yield
    finally:
        _fused.reset(token)


def are_wanted(device: torch.device) -> bool:
    """Whether the fused kernels are to be used: without a setting on the host alone."""
    wanted = _fused.get()
    return device.type == "cpu" if wanted is None else wanted
