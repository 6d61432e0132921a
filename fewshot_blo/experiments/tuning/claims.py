"""Who works on which trial: locks of the system, which end with their process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.locks import LockFile, writable

_TURN, _TRIAL = ".turn.lock", ".trial.lock"


@contextmanager
def turn(folder: Path, name: str = _TURN) -> Iterator[None]:
    """Inside, this worker alone takes trials and writes results in the folder of a search.

    Others wait.

    Args:
        folder: the folder, which is created.
        name: of the lock.

    Raises:
        CheckpointError: if the folder cannot be written to.
        ConfigurationError: if its file system has no locks.
    """
    with writable(folder):
        file = LockFile(folder / name)
    try:
        _lock(file, folder, waits=True)
        yield
    finally:
        file.close()


def take_trial(folder: Path) -> LockFile | None:
    """The lock of a trial, to be closed when its end is recorded; None if another worker has it.

    Args:
        folder: folder of the trial, which is created.

    Raises:
        CheckpointError, ConfigurationError: as ``turn``.
    """
    with writable(folder):
        file = LockFile(folder / _TRIAL)
    if _lock(file, folder, waits=False):
        return file
    file.close()
    return None


def _lock(file: LockFile, folder: Path, *, waits: bool) -> bool:
    try:
        return file.lock(waits=waits)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} is on a file system without locks ({error.strerror}), by which workers "
            "share trials: choose a folder on another one"
        ) from error
