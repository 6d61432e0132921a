"""Reading of PyTorch's zip files with the CRC-32 of each record, which ``torch.load`` ignores."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot_blo.machine.allocator import prefer_huge_pages

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MAGIC = b"PK\x03\x04"
_SMALL = 4 << 20
"""Files up to this many bytes are read at once, which saves system calls."""

_LENGTHS = 26
"""Where a record's header has the lengths of its name and of further fields; it has 30 bytes."""

_BLOCK = 1 << 18
"""Bytes that are read and then summed while they are in the processor's cache."""


class DamagedError(ValueError):
    """A record that differs from what was written."""


class _Checked(io.FileIO):
    """A zip file whose uncompressed records are checked when they are read as a whole."""

    def index(self) -> None:
        """Reads where the records are.

        Raises:
            zipfile.BadZipFile: if the directory of the file is damaged.
        """
        with zipfile.ZipFile(self) as archive:
            records = archive.infolist()
        self._waiting = {self._start(record): record for record in records}
        self._damaged: list[zipfile.ZipInfo] = []
        self.seek(0)

    def _start(self, record: zipfile.ZipInfo) -> int:
        """Where a record's content begins."""
        self.seek(record.header_offset + _LENGTHS)
        return _after_header(record, self.read(4))

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Reads into a buffer as every file does, and checks a record that fills it.

        An error here would be lost in PyTorch: ``check`` raises it.
        """
        view = memoryview(buffer)
        record = self._waiting.get(self.tell())
        if record is None or not view.nbytes == record.file_size == record.compress_size:
            return super().readinto(view) or 0
        del self._waiting[self.tell()]
        prefer_huge_pages(view)
        done = total = 0
        while done < view.nbytes:
            count = super().readinto(view[done : done + _BLOCK]) or 0
            if not count:
                break
            total = zlib.crc32(view[done : done + count], total)
            done += count
        if total != record.CRC:
            self._damaged.append(record)
        return done

    def check(self) -> None:
        """Checks the records that were not read as a whole.

        Raises:
            DamagedError: if one is damaged, or one that was read was.
        """
        for record in self._damaged:
            raise DamagedError(_fault(record))
        if self._waiting:
            with zipfile.ZipFile(self) as archive:
                for record in self._waiting.values():
                    _check_slowly(archive, record)


@contextmanager
def checked(path: Path) -> Iterator[Any]:
    """A file for ``torch.load``, whose records are checked as they are read, or at the end.

    A file that is no zip, as those of PyTorch before 1.6, is passed on unchecked.

    Raises:
        DamagedError: if a record differs from its CRC-32.
        zipfile.BadZipFile: if the file's directory is damaged or cut off.
        OSError: if the file cannot be read.
    """
    with path.open("rb") as start:
        is_small = os.fstat(start.fileno()).st_size <= _SMALL
        content = start.read(-1 if is_small else len(_MAGIC))
        if not content.startswith(_MAGIC):
            start.seek(0)
            yield start
            return
    if is_small:
        _check_all(content)
        yield io.BytesIO(content)
        return
    with _Checked(path) as file:
        file.index()
        try:
            yield file
        finally:  # Damage comes before what it leads to.
            file.check()


def is_intact(path: Path) -> bool:
    """Whether a zip file's records are all as they were written."""
    try:
        with path.open("rb") as start, zipfile.ZipFile(start) as archive:
            return archive.testzip() is None
    except Exception:  # A damaged file can raise almost any exception.
        return False


def _check_all(content: bytes) -> None:
    """Checks all records of a file in memory."""
    view = memoryview(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for record in archive.infolist():
            place = record.header_offset + _LENGTHS
            start = _after_header(record, content[place : place + 4])
            if record.file_size == record.compress_size:
                if zlib.crc32(view[start : start + record.file_size]) != record.CRC:
                    raise DamagedError(_fault(record))
            else:
                _check_slowly(archive, record)


def _after_header(record: zipfile.ZipInfo, lengths: bytes) -> int:
    name, further = lengths[:2], lengths[2:]
    both = int.from_bytes(name, "little") + int.from_bytes(further, "little")
    return record.header_offset + _LENGTHS + 4 + both


def _check_slowly(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Checks a record that may be compressed."""
    try:
        with archive.open(record) as file:
            while file.read(_BLOCK):
                pass
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DamagedError(_fault(record)) from error


def _fault(record: zipfile.ZipInfo) -> str:
    name = record.filename.partition("/")[2] or record.filename
    return f"its record '{name}' of {record.file_size} bytes is not what was written"
