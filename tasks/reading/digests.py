"""Digests of a large file by blocks, and when they are compared with it."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fewshot_blo.errors import CheckpointError
from fewshot_blo.records.json_files import read_json, write_json

BLOCK = 1 << 24
"""Bytes under one digest."""

_SETTLED = 10.0
"""Seconds after which a file's times tell a change: those of file systems are coarse."""
_VALID = 86_400.0
"""Seconds for which a file that was found whole is not read again."""


class Digests:
    """CRC-32 of each block of bytes that come in pieces."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._last = self._size = 0

    def add(self, piece: bytes | memoryview) -> None:
        """Takes in the next bytes."""
        rest = memoryview(piece)
        while rest:
            part, rest = rest[: BLOCK - self._size], rest[BLOCK - self._size :]
            self._last, self._size = zlib.crc32(part, self._last), self._size + len(part)
            if self._size == BLOCK:
                self._done.append(self._last)
                self._last = self._size = 0

    def all(self) -> list[int]:
        """One of each block so far, of which the last may be shorter."""
        return [*self._done, self._last] if self._size else self._done


def is_whole(file: BinaryIO, size: int, digests: Sequence[int], stamp: Path) -> bool:
    """Whether the first ``size`` bytes of an open file are those that the digests were made of.

    They are read at the first call on a machine, after the file has changed, after the machine has
    started, and once a day, at about 0.25 s a GB besides the disk's time: a file larger than memory
    is not read whole at each start. Between, size, inode and times of the file decide. A change of
    the last ten seconds before a check might not show in its times, so that the next call reads
    it again.

    Args:
        file: the file.
        size: bytes under the digests.
        digests: CRC-32 of each block.
        stamp: file that keeps when and as what the file was found whole.
    """
    now, state = time.time(), _state(file)
    if state is not None and _is_valid(stamp, state, now):
        return True
    found, rest, buffer = Digests(), size, bytearray(min(size, 1 << 20))
    file.seek(0)
    while rest:
        # Read and not mapped: mapped pages would count as this process's memory.
        got = file.readinto(memoryview(buffer)[:rest])  # type: ignore[attr-defined]
        if not got:
            return False
        found.add(memoryview(buffer)[:got])
        rest -= got
    if found.all() != list(digests):
        return False
    changed = max(os.fstat(file.fileno()).st_mtime, os.fstat(file.fileno()).st_ctime)
    if state is not None and state == _state(file) and now - changed > _SETTLED:
        with suppress(OSError):  # A read-only folder: it is read again next time.
            write_json(stamp, {"file": state, "at": now})
    return True


def _is_valid(stamp: Path, state: list[Any], now: float) -> bool:
    try:
        content = read_json(stamp)
        return content["file"] == state and bool(0 <= now - content["at"] < _VALID)
    except (OSError, CheckpointError, LookupError, TypeError):
        return False


def _state(file: BinaryIO) -> list[Any] | None:
    """What tells a changed file, and this start of this machine; None where that is not known."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    state = os.fstat(file.fileno())
    return [start, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
