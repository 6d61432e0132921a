"""Keeping freed host memory for the next step instead of returning it to the system."""

from __future__ import annotations

import ctypes
import ctypes.util

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Makes the C library reuse large blocks; call it before the first tensor is made.

    By default glibc maps every large tensor anew and pays a page fault for each of its pages,
    which takes longer than most element-wise operations on it. The process then holds on to its
    peak memory until it ends.

    Returns:
        Whether the C library took the settings; others than glibc do not have them.
    """
    library = ctypes.util.find_library("c")
    mallopt = getattr(ctypes.CDLL(library), "mallopt", None) if library else None
    if mallopt is None:
        return False
    gibibyte = 1 << 30
    settings = {_M_MMAP_THRESHOLD: gibibyte, _M_TRIM_THRESHOLD: gibibyte, _M_TOP_PAD: 1 << 26}
    taken = [mallopt(option, value) == 1 for option, value in settings.items()]
    return all(taken)
