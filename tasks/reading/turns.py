"""``turn``: of several processes that need the same work, one does it and the others wait."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BUSY = (errno.EAGAIN, errno.EACCES)


@contextmanager
def turn(path: Path, work: str, *, told: bool = False) -> Iterator[bool]:
    """Inside, this process alone does the work that a lock file stands for; others wait here.

    Who waits says so once on stderr. The lock is the system's (``flock``): it ends with its
    process, however that ends, and the next one takes its turn. A forked child that outlives its
    parent would hold it, so nothing may be forked inside. Where the file cannot be made, as in a
    read-only folder, there is no lock, and nothing is said, since the work's own error will be.
    Where the file system has no locks, a warning says that the work may be done several times.

    Args:
        path: the lock file, which is removed at the end.
        work: what is done inside, such as "decodes the images of Omniglot".
        told: keep the file after an error, to tell the next process.

    Yields:
        Whether an earlier process ended inside without finishing, as far as its file tells.
    """
    descriptor = _locked(path, work)
    if descriptor is None:
        yield False
        return
    try:
        is_left = bool(os.pread(descriptor, 1, 0))
        about = {"process": os.getpid(), "host": platform.node()}
        with suppress(OSError):  # A full disk; the lock holds all the same.
            os.pwrite(descriptor, json.dumps(about).encode(), 0)
        try:
            yield is_left
        except BaseException:
            if not told:
                _remove(path)
            raise
        _remove(path)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    # Before it is unlocked: who waits for it sees that its file is gone.
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _locked(path: Path, work: str) -> int | None:
    """The descriptor of the locked file, waited for; None where it cannot be locked."""
    is_said = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _BUSY:
                    os.close(descriptor)
                    _warn(path, work, error)
                    return None
                if not is_said:
                    _say(f"waiting for {_holder(descriptor)}, which {work}")
                    is_said = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                return descriptor
            os.close(descriptor)  # Its holder removed it at the end: lock the new one.
    except OSError:
        return None


def _warn(path: Path, work: str, error: OSError) -> None:
    warnings.warn(
        f"{path.parent} is on a file system without locks ({error}): of processes that start at "
        f"the same time, each {work}",
        stacklevel=7,
    )


def _holder(descriptor: int) -> str:
    with suppress(OSError, ValueError, LookupError, TypeError):
        about = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {about['process']} on {about['host']}"
    return "another process"


def _say(line: str) -> None:
    with suppress(OSError, AttributeError):  # A terminal that is gone, or a program without one.
        sys.stderr.write(f"{line}\n")  # In one piece: several processes may wait.
        sys.stderr.flush()


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
