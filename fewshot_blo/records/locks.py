"""Locks of the system; ``writing``: one process at a time writes into the folder of a run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fewshot_blo.errors import CheckpointError
from fewshot_blo.machine.processes import joined
from fewshot_blo.records.files import sweep

LOCK = ".writer.lock"
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


class LockFile:
    """A file by whose lock (``flock``) processes agree who may do something.

    The lock ends with its process however that ends, and is not that of a forked one, as of a data
    loader. It also holds between hosts on NFS of Linux with a lock service.

    Args:
        path: the file, which is created if it is missing.

    Attributes:
        descriptor: of the open file.

    Raises:
        OSError: if it cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._closed = weakref.finalize(self, os.close, self.descriptor)
        _open.add(self)

    def lock(self, *, waits: bool = False) -> bool:
        """Locks it until ``close``; False if another one has locked it and this does not wait.

        Raises:
            OSError: if its file system has no locks.
        """
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        return True

    def is_at(self, path: Path) -> bool:
        """Whether it is the file at a path."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), path.stat())
        except OSError:
            return False

    @property
    def is_open(self) -> bool:
        """Whether it is open; false in a forked process."""
        return self._closed.alive

    def close(self) -> None:
        """Closes the file, which unlocks it, unless it is closed already."""
        _open.discard(self)
        self._closed()


_open: weakref.WeakSet[LockFile] = weakref.WeakSet()


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Inside, what the system refuses is said to be that the folder cannot be written to.

    The folder is created if it is missing.

    Raises:
        CheckpointError: for an OSError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot write into {folder} ({error.strerror}): choose another folder, or allow it"
        ) from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Inside, this process alone writes into a folder, which is created if it is missing.

    The lock is on the file ``.writer.lock`` (``LockFile``); where a file system has no locks, a
    warning says so. Temporary files that a killed process left in the folder are removed.

    Args:
        folder: folder of the run.

    Raises:
        CheckpointError: if another process writes into the folder, this one is one of several
            that ``torchrun`` started, or the folder cannot be written to.
    """
    _check_alone(folder)
    is_new = not folder.exists()
    with writable(folder):
        lock = _locked(folder)
    try:
        sweep(folder, deep=True)
        yield
    finally:
        if lock.is_open:  # Else this is a forked process, without the lock.
            _release(folder, lock)
        if is_new:
            with suppress(OSError):  # It is not empty.
                folder.rmdir()


def _release(folder: Path, lock: LockFile) -> None:
    # Removed before it is unlocked: who waits for it sees that its file is gone.
    if lock.is_at(folder / LOCK):
        with suppress(OSError):  # A folder that has become read-only.
            (folder / LOCK).unlink(missing_ok=True)
    lock.close()


def _check_alone(folder: Path) -> None:
    size = os.environ.get("WORLD_SIZE", "1")
    if size not in ("", "1") and joined().count == 1:
        raise CheckpointError(
            f"WORLD_SIZE is {size}, and there is no process group: each of these processes would "
            f"write its own run into {folder}; start one process, without torchrun, or call "
            "torch.distributed.init_process_group before train"
        )


def _locked(folder: Path) -> LockFile:
    """The folder's lock file, locked.

    Raises:
        CheckpointError: if another process holds it.
    """
    path = folder / LOCK
    while True:
        file = LockFile(path)
        try:
            if not file.lock():
                holder = _holder(file.descriptor)
                file.close()
                raise CheckpointError(_refusal(folder, holder))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            warnings.warn(
                f"{folder} is on a file system without locks ({error}): make sure that no other "
                "process writes to it",
                stacklevel=5,
            )
            return file
        if file.is_at(path):
            os.ftruncate(file.descriptor, 0)
            os.write(file.descriptor, json.dumps(_self()).encode())
            return file
        file.close()  # Its holder removed it at the end: lock the new one.


def _self() -> Mapping[str, str | int]:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": platform.node(), "since": now}


def _holder(descriptor: int) -> Mapping[str, Any]:
    """What the lock file says about the process that holds it; empty if it says nothing yet."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _refusal(folder: Path, holder: Mapping[str, Any]) -> str:
    process, host = holder.get("process", "another"), holder.get("host", "an unknown host")
    return (
        f"{folder} is in use: process {process} on {host} has written to it since "
        f"{holder.get('since', 'a moment ago')}; wait for it, stop it, or choose another folder"
    )


def _close_in_child() -> None:
    """A forked process must not hold a lock after its parent's end."""
    for lock in list(_open):
        lock.close()


os.register_at_fork(after_in_child=_close_in_child)
