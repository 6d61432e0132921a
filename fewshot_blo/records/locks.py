"""``writing``: one process at a time writes into the folder of a run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import warnings
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
_held: set[int] = set()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Inside, this process alone writes into a folder, which is created if it is missing.

    The lock is the system's (``flock``) on the file ``.writer.lock``, so that it ends with its
    process however that ends. It also holds between hosts on NFS of Linux with a lock service;
    where a file system has no locks, a warning says so. Temporary files that a killed process
    left in the folder are removed.

    Args:
        folder: folder of the run.

    Raises:
        CheckpointError: if another process writes into the folder, this one is one of several
            that ``torchrun`` started, or the folder cannot be written to.
    """
    _check_alone(folder)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot write into {folder} ({error.strerror}): choose another folder, or allow it"
        ) from error
    _held.add(descriptor)
    try:
        sweep(folder, deep=True)
        yield
    finally:
        if descriptor in _held:  # Else this is a forked process, without the lock.
            _release(folder, descriptor)
        if is_new:
            with suppress(OSError):  # It is not empty.
                folder.rmdir()


def _release(folder: Path, descriptor: int) -> None:
    _held.discard(descriptor)
    # Removed before it is unlocked: who waits for it sees that its file is gone.
    if _is_at(descriptor, folder / LOCK):
        with suppress(OSError):  # A folder that has become read-only.
            (folder / LOCK).unlink(missing_ok=True)
    os.close(descriptor)


def _check_alone(folder: Path) -> None:
    size = os.environ.get("WORLD_SIZE", "1")
    if size not in ("", "1") and joined().count == 1:
        raise CheckpointError(
            f"WORLD_SIZE is {size}, and there is no process group: each of these processes would "
            f"write its own run into {folder}; start one process, without torchrun, or call "
            "torch.distributed.init_process_group before train"
        )


def _locked(folder: Path) -> int:
    """The descriptor of the folder's lock file, locked.

    Raises:
        CheckpointError: if another process holds it.
    """
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise CheckpointError(_refusal(folder, holder)) from error
            warnings.warn(
                f"{folder} is on a file system without locks ({error}): make sure that no other "
                "process writes to it",
                stacklevel=5,
            )
            return descriptor
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(_self()).encode())
            return descriptor
        os.close(descriptor)  # Its holder removed it at the end: lock the new one.


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


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _close_in_child() -> None:
    """A forked process, as of a data loader, must not hold the lock after its parent's end."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
