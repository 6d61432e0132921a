"""Zip archives of data, unpacked once into the cache folder."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fewshot_blo.records.files import ARCHIVE_ERRORS, cache_folder
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.turns import turn
from fewshot_blo.tasks.reading.walk import is_hidden

_ENCRYPTED = 0x1
_PREFIX = ".unpacking-"
_FILES, _KEY = "files", "key"


class Unpacked(NamedTuple):
    """A folder of data.

    Attributes:
        root: the folder.
        notes: where an archive was unpacked; empty if it is no archive.
    """

    root: Path
    notes: tuple[str, ...] = ()


def unpacked(path: Path, *, refresh: bool = False) -> Unpacked:
    """The folder that a zip archive holds, unpacked into the cache folder; other paths as they are.

    A changed archive (size, time of modification or change) is unpacked again. Where all of it lies
    in one folder, that is the folder.

    Args:
        path: a file that ends in ``.zip``, or any other path.
        refresh: unpack again.

    Raises:
        DataError: if the archive is damaged or encrypted, holds links, names that leave the folder
            or a name twice, or the cache folder cannot take it.
    """
    if path.suffix.lower() != ".zip" or not path.is_file():
        return Unpacked(path)
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{path.stem}-{digest}" / "unpacked"
    key = _key(path)
    if refresh or _kept(folder) != key:
        with turn(folder.parent / ".unpacking.lock", f"unpacks {path}") as is_left:
            # Another process may have unpacked it since.
            if refresh or _kept(folder) != key:
                _unpack(path, key, folder, is_left)
    return Unpacked(_inner(folder / _FILES), (f"{path} is unpacked in {folder}, and read there",))


def _key(path: Path) -> str:
    state = path.stat()
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def _kept(folder: Path) -> str | None:
    """The key of the archive that was unpacked here; None if none was."""
    try:
        return (folder / _KEY).read_text()
    except (OSError, ValueError):
        return None


def _inner(folder: Path) -> Path:
    """The one folder that holds all else, if there is one."""
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


def _unpack(path: Path, key: str, folder: Path, is_left: bool) -> None:
    parent = folder.parent
    new = parent / f"{_PREFIX}{secrets.token_hex(8)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.glob(f"{_PREFIX}*") if is_left else ():
            shutil.rmtree(old, ignore_errors=True)
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path, parent)
            new.mkdir()
            for member, name in members:
                target = new / _FILES / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)
        (new / _KEY).write_text(key)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{path} is no zip archive, or it is damaged ({error}): get it again"
        ) from error
    except ARCHIVE_ERRORS as error:
        raise DataError(
            f"{path} cannot be unpacked into {parent} ({error}): unpack it yourself and name the "
            "folder, or set the environment variable XDG_CACHE_HOME to another cache folder"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _members(
    archive: zipfile.ZipFile, path: Path, parent: Path
) -> list[tuple[zipfile.ZipInfo, str]]:
    """The files of an archive with their names, after a check of all of them."""
    members = [(m, m.filename) for m in archive.infolist() if not m.is_dir()]
    needed, free = sum(m.file_size for m, _ in members), shutil.disk_usage(parent).free
    if needed > free:
        raise DataError(
            f"{path} holds {needed / 2**30:.1f} GiB, and {parent} has {free / 2**30:.1f} GiB free: "
            "set the environment variable XDG_CACHE_HOME to another cache folder"
        )
    seen: set[str] = set()
    for member, name in members:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name:
            raise DataError(
                f"{path}: '{name}' is no path below its folder, with / between folders: pack the "
                "folder again"
            )
        if member.flag_bits & _ENCRYPTED:
            raise DataError(f"{path}: '{name}' is encrypted: unpack it and name the folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{path}: '{name}' is a link: pack the files themselves")
        if name in seen:
            raise DataError(f"{path}: '{name}' is in it twice: pack the folder again")
        seen.add(name)
    if not members:
        raise DataError(f"{path} holds no files: name another archive, or a folder")
    return members
