"""Files that are written whole or not at all, and the folder for what can be computed again."""

from __future__ import annotations

import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# What reading a damaged zip archive raises, or an npz file, which is one.
ARCHIVE_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its place at ``path`` only once it is complete and on the disk.

    Missing parent folders are created. If the body raises, what was at ``path`` before stays.

    Raises:
        OSError: if the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        # Not tempfile: its files are readable by their owner alone, this one follows the umask.
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where what can be computed again is kept; it need not exist yet.

    ``fewshot_blo`` in ``$XDG_CACHE_HOME`` if that is an absolute path, else in ``~/.cache``.
    """
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".cache"
    return base / "fewshot_blo"


def with_subfolders(root: Path) -> list[Path]:
    """``root``, then in order of their names those of its folders that can be listed."""
    children = sorted(child for child in root.glob("*/") if os.access(child, os.R_OK | os.X_OK))
    return [root, *children]
