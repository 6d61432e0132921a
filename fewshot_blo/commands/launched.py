"""What ``torchrun`` tells the processes that it starts; needs no PyTorch."""

from __future__ import annotations

import os

from fewshot_blo.errors import ConfigurationError


def started() -> int:
    """Number of processes that were started together (``WORLD_SIZE``).

    Raises:
        ConfigurationError: if it is not an integer.
    """
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdecimal():
        raise ConfigurationError(f"WORLD_SIZE is '{text}': it must be a number of processes")
    return int(text)


def is_first() -> bool:
    """Whether this is the first one of them, which says what all would say."""
    return os.environ.get("WORLD_SIZE", "") in ("", "1") or os.environ.get("RANK", "0") == "0"


def is_restarted() -> bool:
    """Whether ``torchrun`` has started these processes again after one of them failed."""
    return (os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0") != "0"
