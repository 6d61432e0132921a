"""PyTorch's own operations in place of the kernel's, to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_plain: ContextVar[bool] = ContextVar("plain_operations", default=False)


@contextmanager
def plain_operations() -> Iterator[None]:
    """Networks compute with PyTorch's convolutions, norms and pooling, and their derivatives."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def is_plain() -> bool:
    """Whether the forward pass is to use PyTorch's own operations."""
    return _plain.get()
