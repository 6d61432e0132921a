"""Reading of PyTorch's zip files with the CRC-32 of each record, which ``torch.load`` ignores."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot_blo.machine.allocator import prefer_huge_pages

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    _Base = io.RawIOBase
else:
    _Base = object

_MAGIC = b"PK\x03\x04"
_SMALL = 4 << 20
"""Files up to this many bytes are read at once, which saves system calls."""

_BLOCK = 1 << 18
"""Bytes that are read and then summed while they are in the processor's cache."""


class DamagedError(ValueError):
    """A record that differs from what was written."""


class _Checked(_Base):
    """A zip file whose uncompressed records are checked when they are read as a whole."""

    def index(self) -> None:
        """Reads the directory of the file.

        Raises:
            zipfile.BadZipFile: if it is damaged.
        """
        self.waiting: dict[int, zipfile.ZipInfo] = {}
        with zipfile.ZipFile(self) as archive:  # type: ignore[arg-type]
            for record in archive.infolist():
                self.seek(record.header_offset + 26)
                sizes = self.read(4) or b""
                lengths = int.from_bytes(sizes[:2], "little") + int.from_bytes(sizes[2:], "little")
                self.waiting[record.header_offset + 30 + lengths] = record
        self.seek(0)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Reads into a buffer as every file does, and checks a record that fills it.

        Raises:
            DamagedError: if it is damaged.
        """
        view = memoryview(buffer)
        record = self.waiting.get(self.tell())
        if record is None or not view.nbytes == record.file_size == record.compress_size:
            return super().readinto(view) or 0
        del self.waiting[self.tell()]
        prefer_huge_pages(view)
        done = total = 0
        while done < view.nbytes:
            count = super().readinto(view[done : done + _BLOCK]) or 0
            if not count:
                break
            total = zlib.crc32(view[done : done + count], total)
            done += count
        _compare(record, total)
        return done

    def check_others(self) -> None:
        """Checks the records that were not read as a whole.

        Raises:
            DamagedError: if one is damaged.
        """
        records = list(self.waiting.values())
        if not records:
            return
        with zipfile.ZipFile(self) as archive:  # type: ignore[arg-type]
            for record in records:
                try:
                    with archive.open(record) as file:
                        while file.read(_SMALL):
                            pass
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise DamagedError(_fault(record)) from error


class _InMemory(_Checked, io.BytesIO):
    """A small file."""


class _OnDisk(_Checked, io.FileIO):
    """A large file."""


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
        if start.read(len(_MAGIC)) != _MAGIC:
            start.seek(0)
            yield start
            return
    small = path.stat().st_size <= _SMALL
    with _InMemory(path.read_bytes()) if small else _OnDisk(path) as file:
        file.index()
        yield file
        file.check_others()


def is_intact(path: Path) -> bool:
    """Whether a zip file's records are all as they were written."""
    try:
        with path.open("rb") as start, zipfile.ZipFile(start) as archive:
            return archive.testzip() is None
    except Exception:  # A damaged file can raise almost any exception.
        return False


def _compare(record: zipfile.ZipInfo, total: int) -> None:
    if total != record.CRC:
        raise DamagedError(_fault(record))


def _fault(record: zipfile.ZipInfo) -> str:
    name = record.filename.partition("/")[2] or record.filename
    return f"its record '{name}' of {record.file_size} bytes is not what was written"
