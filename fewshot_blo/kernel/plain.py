"""A switch to PyTorch's own operations in place of the kernel's, as a baseline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_plain: ContextVar[bool] = ContextVar("plain_operations", default=False)


@contextmanager
def plain_operations() -> Iterator[None]:
    """Inside, forward passes use PyTorch's own convolutions, norms, pooling and derivatives."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def is_plain() -> bool:
    """Whether forward passes use PyTorch's own operations."""
    return _plain.get()
