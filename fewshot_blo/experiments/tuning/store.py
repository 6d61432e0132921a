"""The storage of a search: Optuna's journal in the folder, or a database."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fewshot_blo.errors import CheckpointError, ConfigurationError, installed_by
from fewshot_blo.experiments.tuning.claims import turn
from fewshot_blo.records.files import drop_begun_line

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage
    from optuna.study import Study

    from fewshot_blo.experiments.tuning.request import TuneRequest

JOURNAL, _WRITING = "trials.log", ".trials.lock"
_STUDY = "fewshot-blo tune"
_BEFORE_PRUNING = 5
"""Finished trials whose median is the first to end another one, as in Optuna."""


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Optuna logs errors only, and does not warn of its experimental features.

    Raises:
        ConfigurationError: if Optuna is not installed, with the command that installs it.
    """
    with installed_by(".[tune]"):
        import optuna
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_study(folder: Path, request: TuneRequest, steps: int, *, maximize: bool) -> Study:
    """The trials of a search, new or as they were left; to be called in this worker's ``turn``.

    The journal has JSON lines and a database has columns of text and numbers: Optuna unpickles
    nothing of either.

    Args:
        folder: folder of the search.
        request: names the storage and the pruner.
        steps: outer steps of the recipe.
        maximize: whether higher values of the metric are better.

    Raises:
        CheckpointError: if the journal is damaged.
        ConfigurationError: if the database cannot be opened.
    """
    import optuna

    name = f"{_STUDY} {folder.resolve().name}" if request.storage else _STUDY
    try:
        return optuna.create_study(
            storage=_database(request.storage) if request.storage else _journal(folder),
            study_name=name,
            direction="maximize" if maximize else "minimize",
            load_if_exists=True,
            pruner=_pruner(request, steps),
        )
    # What a library raises for a file or a database that is not its own may be anything.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        if request.storage:
            reason = reason.replace(request.storage, _shown(request.storage))
            raise ConfigurationError(
                f"storage {_shown(request.storage)} cannot be opened ({reason}): it must be an "
                "address as sqlite:///FILE or postgresql://USER@HOST/NAME, whose driver is "
                "installed"
            ) from error
        if isinstance(error, OSError):
            raise
        raise CheckpointError(
            f"{folder / JOURNAL} is damaged ({reason}): choose another folder, or remove it "
            "together with the trials"
        ) from error


def _journal(folder: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    class Turn(JournalFileOpenLock):
        """A lock of the system; Optuna's is a file, which a killed process leaves for 30 s."""

        def acquire(self) -> bool:
            self.turn = turn(folder, _WRITING)
            self.turn.__enter__()
            return True

        def release(self) -> None:
            self.turn.__exit__(None, None, None)

    path = folder / JOURNAL
    backend = JournalFileBackend(str(path), lock_obj=Turn(str(path)))
    with turn(folder, _WRITING), path.open("r+b") as file:
        drop_begun_line(file)  # The next one would be joined to it.
    return JournalStorage(backend)


def _database(address: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy import NullPool, make_url

    url = make_url(address)
    if url.get_backend_name() != "sqlite":
        return RDBStorage(address)
    if url.database in (None, "", ":memory:"):
        raise ValueError("without a file it would end with its process")
    # A pool would keep the file open, also if the storage turns out to be none.
    return RDBStorage(address, engine_kwargs={"poolclass": NullPool})


def _shown(address: str) -> str:
    """An address without its password."""
    scheme, mark, rest = address.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def _pruner(request: TuneRequest, steps: int) -> BasePruner:
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if request.pruner == "median":
        return MedianPruner(n_startup_trials=_BEFORE_PRUNING)
    if request.pruner == "hyperband":
        return HyperbandPruner(max_resource=max(steps, 1))
    return NopPruner()
