"""Who works on which trial: locks of the system, which end with their process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.locks import LockFile, writable

_TURN, _TRIAL = ".turn.lock", ".trial.lock"


@contextmanager
def turn(folder: Path, name: str = _TURN) -> Iterator[None]:
    """Inside, this worker alone takes trials and writes results in the folder of a search.

    Others wait. After an error that comes before anything is written into the folder, its lock is
    removed, and so is the folder if it is new.

    Args:
        folder: the folder, which is created.
        name: of the lock.

    Raises:
        CheckpointError: if the folder cannot be written to.
        ConfigurationError: if its file system has no locks.
    """
    path = folder / name
    while True:
        new = [each for each in (folder, *folder.parents) if not each.exists()]
        with writable(folder):
            file = LockFile(path)
        try:
            _lock(file, folder, waits=True)
            if not file.is_at(path):
                continue  # Its holder has removed it.
            with _undone(path, new):
                yield
            return
        finally:
            file.close()


@contextmanager
def _undone(path: Path, new: Sequence[Path]) -> Iterator[None]:
    """Removes a lock file, and new folders, after an error if they have nothing else."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # Others have written into the folders.
            if [*path.parent.iterdir()] == [path]:
                path.unlink()  # Not unlocked yet: who waits for it sees that it is gone.
                for folder in new:
                    folder.rmdir()
        raise


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
