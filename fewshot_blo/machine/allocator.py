"""Settings of the C library's allocator: keep freed memory, or return it to the system."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import mmap
import sys
from collections.abc import Mapping

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KIBIBYTE, _MEBIBYTE, _GIBIBYTE = 1 << 10, 1 << 20, 1 << 30
_PAGE, _HUGE, _MADV_HUGEPAGE = mmap.PAGESIZE, 4 * _MEBIBYTE, 14
_HEAP = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks")


class _HeapUse(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in (*_HEAP, "fordblks", "keepcost"))


def kept_bytes() -> int:
    """Freed bytes that the C library holds; 0 if it does not report them.

    Includes up to 64 MiB that it has reserved in advance.
    """
    function = getattr(_c_library(), "mallinfo2", None)
    if function is None:
        return 0
    function.restype = _HeapUse
    return int(function().fordblks)


def keep_freed_memory() -> bool:
    """Makes the C library reuse freed large blocks; call it before the first tensor is created.

    By default glibc maps every large tensor anew, with a page fault for each of its pages, which
    takes longer than most element-wise operations. With this setting the process holds its peak
    memory until it ends.

    Returns:
        Whether the C library accepted the settings, which only glibc has.
    """
    return _set(
        {
            _M_MMAP_THRESHOLD: _GIBIBYTE,
            _M_TRIM_THRESHOLD: _GIBIBYTE,
            _M_TOP_PAD: 64 * _MEBIBYTE,
        }
    )


def return_freed_memory() -> bool:
    """Makes the C library return freed large blocks at once, so that it holds little but tensors.

    By default glibc keeps ever larger blocks for later, and the heap becomes too fragmented for new
    tensors.

    Returns:
        Whether the C library accepted the settings, which only glibc has.
    """
    # glibc's defaults, which it otherwise raises whenever a large block is freed.
    return _set(dict.fromkeys((_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD), 128 * _KIBIBYTE))


def prefer_huge_pages(buffer: memoryview) -> None:
    """Asks Linux for pages of 2 MiB in a new buffer of 4 MiB or more, which saves page faults.

    Reading 100 MiB into new memory takes half the time then. It is only a hint: nothing else
    changes, and other systems ignore it.
    """
    if buffer.nbytes < _HUGE or sys.platform != "linux":
        return
    madvise = getattr(_own_symbols(), "madvise", None)
    if madvise is not None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        start, end = -(-address // _PAGE) * _PAGE, (address + buffer.nbytes) // _PAGE * _PAGE
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_HUGEPAGE)


@functools.cache
def _own_symbols() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _set(options: Mapping[int, int]) -> bool:
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is None:
        return False
    taken = [mallopt(option, value) == 1 for option, value in options.items()]
    return all(taken)


@functools.cache  # find_library starts processes.
def _c_library() -> ctypes.CDLL | None:
    name = ctypes.util.find_library("c")
    return ctypes.CDLL(name) if name else None
