"""``turn``: of several processes that need the same work, one does it and the others wait."""

from __future__ import annotations

import json
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fewshot_blo.records.locks import LockFile


@contextmanager
def turn(path: Path, work: str, *, told: bool = False) -> Iterator[bool]:
    """Inside, this process alone does the work that a lock file stands for; others wait here.

    Who waits says so once on stderr. The lock is the system's (``flock``): it ends with its
    process, however that ends, and the next one takes its turn. Where the file cannot be made, as
    in a read-only folder, there is no lock, and nothing is said, since the work's own error will
    be. Where the file system has no locks, a warning says that the work may be done several times.

    Args:
        path: the lock file, which is removed at the end.
        work: what is done inside, such as "decodes the images of Omniglot".
        told: keep the file after an error, to tell the next process.

    Yields:
        Whether an earlier process ended inside without finishing, as far as its file tells.
    """
    file = _locked(path, work)
    if file is None:
        yield False
        return
    try:
        is_left = bool(os.pread(file.descriptor, 1, 0))
        about = {"process": os.getpid(), "host": platform.node()}
        with suppress(OSError):  # A full disk; the lock holds all the same.
            os.pwrite(file.descriptor, json.dumps(about).encode(), 0)
        try:
            yield is_left
        except BaseException:
            if not told:
                _remove(path)
            raise
        _remove(path)
    finally:
        file.close()


def _remove(path: Path) -> None:
    # Before it is unlocked: who waits for it sees that its file is gone.
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _locked(path: Path, work: str) -> LockFile | None:
    """The locked file, waited for; None where it cannot be locked."""
    is_said = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = LockFile(path)
            try:
                is_free = file.lock()
            except OSError as error:
                file.close()
                _warn(path, work, error)
                return None
            if not is_free:
                if not is_said:
                    _say(f"waiting for {_holder(file)}, which {work}")
                    is_said = True
                file.lock(waits=True)
            if file.is_at(path):
                return file
            file.close()  # Its holder removed it at the end: lock the new one.
    except OSError:
        return None


def _warn(path: Path, work: str, error: OSError) -> None:
    warnings.warn(
        f"{path.parent} is on a file system without locks ({error}): of processes that start at "
        f"the same time, each {work}",
        stacklevel=7,
    )


def _holder(file: LockFile) -> str:
    with suppress(OSError, ValueError, LookupError, TypeError):
        about = json.loads(os.pread(file.descriptor, 4096, 0))
        return f"process {about['process']} on {about['host']}"
    return "another process"


def _say(line: str) -> None:
    with suppress(OSError, AttributeError):  # A terminal that is gone, or a program without one.
        sys.stderr.write(f"{line}\n")  # In one piece: several processes may wait.
        sys.stderr.flush()
