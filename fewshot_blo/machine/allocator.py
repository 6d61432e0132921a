"""Keeping freed host memory for the next step, or returning it to the system."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from collections.abc import Mapping

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KIBIBYTE, _MEBIBYTE, _GIBIBYTE = 1 << 10, 1 << 20, 1 << 30
_HEAP = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks")


class _HeapUse(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in (*_HEAP, "fordblks", "keepcost"))


def kept_bytes() -> int:
    """Bytes that were freed and that the C library keeps; 0 where it does not tell.

    What it took in advance and nothing has touched counts too: at most 64 MiB.
    """
    function = getattr(_c_library(), "mallinfo2", None)
    if function is None:
        return 0
    function.restype = _HeapUse
    return int(function().fordblks)


def keep_freed_memory() -> bool:
    """Makes the C library reuse large blocks; call it before the first tensor is made.

    By default glibc maps every large tensor anew and pays a page fault for each of its pages,
    which takes longer than most element-wise operations on it. The process then holds on to its
    peak memory until it ends.

    Returns:
        Whether the C library took the settings; others than glibc do not have them.
    """
    return _set(
        {
            _M_MMAP_THRESHOLD: _GIBIBYTE,
            _M_TRIM_THRESHOLD: _GIBIBYTE,
            _M_TOP_PAD: 64 * _MEBIBYTE,
        }
    )


def return_freed_memory() -> bool:
    """Makes the C library give large blocks back at once, so that little but tensors is held.

    By default glibc keeps ever larger blocks for later; a heap of these lies in pieces that no new
    tensor fits into.

    Returns:
        Whether the C library took the settings; others than glibc do not have them.
    """
    # glibc's own values, which it would otherwise raise with every large block that is freed.
    return _set(dict.fromkeys((_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD), 128 * _KIBIBYTE))


def _set(options: Mapping[int, int]) -> bool:
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is None:
        return False
    taken = [mallopt(option, value) == 1 for option, value in options.items()]
    return all(taken)


@functools.cache  # Looking for it starts processes.
def _c_library() -> ctypes.CDLL | None:
    name = ctypes.util.find_library("c")
    return ctypes.CDLL(name) if name else None
