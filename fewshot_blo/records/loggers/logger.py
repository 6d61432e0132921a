"""``Logger``: the interface of what receives the records of a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fewshot_blo.errors import ConfigurationError, pip_install

Record = Mapping[str, Any]
"""Values by name; ``step`` is the number of outer steps. Several records may have one step."""


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told when a run begins or is resumed.

    Attributes:
        folder: folder of the run.
        settings: all settings of the run as plain data, by nested names.
        step: number of outer steps taken so far; 0 for a new run.
        records: records of earlier attempts up to ``step``, oldest first. Later ones come again.
    """

    folder: Path
    settings: Mapping[str, Any]
    step: int = 0
    records: Sequence[Record] = ()


class Logger(Protocol):
    """Receives the records of a run, in the first process of several.

    A run makes all calls in one thread, which is not that of the training: they may take long, and
    the training goes on meanwhile. An exception ends the logging, with a warning, and not the run;
    only a ``ConfigurationError`` in ``start`` is an error of the run. ``log.jsonl`` in the run's
    folder has all records in any case.
    """

    def start(self, run: LoggedRun) -> None:
        """Called before the first step of each attempt, which waits for it for 5 minutes."""
        ...

    def write(self, record: Record) -> None:
        """Called for each record, in their order."""
        ...

    def close(self) -> None:
        """Called at the end of an attempt, whether the run is finished or interrupted.

        The run is saved and the files of its log are complete. The attempt ends 2 minutes later
        at the latest.
        """
        ...


def numbers(record: Record) -> dict[str, float]:
    """The numbers of a record by name, without its step."""
    return {
        name: float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float)
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping)
        found.update(flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value})
    return found


def check_installed(logger: str, package: str) -> None:
    """Checks that a logger's package, which is also the name of an extra, is installed.

    Raises:
        ConfigurationError: if it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigurationError(
            f"{logger} needs the package {package}: {pip_install(f'.[{package}]')}"
        )
