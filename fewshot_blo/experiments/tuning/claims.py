"""Who works on which trial: locks of the system, which end with their process."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fewshot_blo.errors import CheckpointError, ConfigurationError

_TURN, _TRIAL = ".turn.lock", ".trial.lock"


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Inside, this worker alone takes trials and writes results in the folder of a search.

    Others wait. The lock ends with its process, and holds between hosts on NFS with a lock service.

    Raises:
        CheckpointError: if the folder cannot be written to.
        ConfigurationError: if its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _TURN).open("ab")
    except OSError as error:
        raise CheckpointError(
            f"cannot write into {folder} ({error.strerror}): choose another folder, or allow it"
        ) from error
    with file:
        _lock(file, fcntl.LOCK_EX)
        yield


def take_trial(folder: Path) -> IO[bytes] | None:
    """The lock of a trial, to be closed when its end is recorded; None if another worker has it.

    Args:
        folder: folder of the trial, which is created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / _TRIAL).open("ab")
    if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
        return file
    file.close()
    return None


def _lock(file: IO[bytes], operation: int) -> bool:
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise ConfigurationError(
            f"{Path(file.name).parent} is on a file system without locks ({error.strerror}), by "
            "which workers share trials: choose a folder on another one"
        ) from error
    return True
