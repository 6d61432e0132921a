"""Atomic writes, folders to write to, and the cache folder."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fewshot_blo.errors import ConfigurationError

# Exceptions that reading a damaged zip archive, including npz files, can raise.
ARCHIVE_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_YOUNG = 60.0
"""Seconds for which a temporary file is left alone: its writer may not have locked it yet."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces ``path`` only once it is complete and synced to disk.

    Missing parent folders are created. If the body raises, an earlier file at ``path`` stays.

    Raises:
        OSError: if the file cannot be written; it names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        # Not tempfile: its files are readable by their owner only; this one follows the umask.
        with temporary.open("xb") as file:
            with suppress(OSError):  # Some file systems have no locks; then none is swept either.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # A folder that has become read-only must not hide the error.
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a text file, which is created if it is missing.

    A last line that a killed process left without its end is dropped.

    Raises:
        OSError: if it cannot be written; it names ``path``.
    """
    try:
        with path.open("a+b") as file:
            drop_begun_line(file)
            file.write((line + "\n").encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def drop_begun_line(file: BinaryIO) -> None:
    """Removes a last line without its end, which a killed process or a full disk has cut short."""
    file.seek(0)
    content = file.read()
    if not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)


def sweep(folder: Path, *, deep: bool = False) -> None:
    """Removes temporary files of ``atomic_write`` whose process was killed.

    A process that still writes holds a lock on its file, so that the file stays.

    Args:
        folder: the folder.
        deep: in its subfolders too.
    """
    now = time.time()
    for file in folder.glob("**/.*.tmp" if deep else ".*.tmp"):
        if not _TEMPORARY.fullmatch(file.name):
            continue
        with suppress(OSError), file.open("r+b") as opened:  # NFS locks what may be written.
            if now - file.stat().st_mtime > _YOUNG:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True)


def prepare_folder(folder: Path) -> None:
    """Makes a folder to write to, before the work whose results it is for, and sweeps it.

    Raises:
        ConfigurationError: if it cannot be made, or files cannot be written to it.
    """
    trial = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.open("xb").close()
        trial.unlink()
        sweep(folder)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to the folder {folder} ({error.strerror}): choose another output"
        ) from error


def cache_folder() -> Path:
    """The cache folder, which may not exist yet.

    ``fewshot_blo`` in ``$XDG_CACHE_HOME`` if that is an absolute path, else in ``~/.cache``.
    """
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".cache"
    return base / "fewshot_blo"


def with_subfolders(root: Path) -> list[Path]:
    """``root``, then its readable subfolders, sorted by name."""
    children = sorted(child for child in root.glob("*/") if os.access(child, os.R_OK | os.X_OK))
    return [root, *children]
