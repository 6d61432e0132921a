"""``RunLog``: the log of a training run as JSON lines, TensorBoard events and curves."""

from __future__ import annotations

import itertools
import json
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewshot_blo.records.events import Events
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.loggers.guarded import Guarded
from fewshot_blo.records.loggers.logger import LoggedRun, Logger, numbers
from fewshot_blo.records.training_curves import draw_curves

LOG = "log.jsonl"
CURVES = "curves.png"
_EVENTS = "tensorboard"


class RunLog:
    """The log of one run, in its folder.

    A record is a mapping with a ``step``. Records of an earlier attempt after ``step`` are
    dropped, so the log of a resumed run equals that of an uninterrupted one. A log with lines that
    are no records is copied to ``log.jsonl.damaged-1`` with a warning, and its other records are
    kept; a last line cut short by a crash is dropped. A log that is removed during the run is
    written again. The curves are drawn at the end of the ``with`` block.

    Args:
        folder: folder of the run.
        step: number of outer steps taken so far.
        loggers: further loggers; each is given the earlier records and every one that is written.
        settings: settings of the run, for the loggers.

    Raises:
        ConfigurationError: if a logger raises it when it is started.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        loggers: Sequence[Logger] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = folder / LOG
        records, is_damaged = _parsed(self.path)
        if is_damaged:
            _set_aside(self.path)
        self.records = [record for record in records if record["step"] <= step]
        self._open()
        self._events = Events(folder / _EVENTS, purge_step=step + 1)
        earlier = tuple(dict(record) for record in self.records)
        try:
            self._loggers = Guarded(loggers, LoggedRun(folder, settings or {}, step, earlier))
        except BaseException:
            self._file.close()
            self._events.close()
            raise
        # The time for loggers to start is not that of the run.
        self._start = time.perf_counter() - self._seconds_before()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close()
            return
        with suppress(OSError):  # A full disk must not hide the error that ended the run.
            self._close()

    def _open(self) -> None:
        """Writes the records so far and opens the file for more."""
        with atomic_write(self.path) as file:
            for record in self.records:
                file.write(_line(record))
        self._file = self.path.open("ab")

    def _seconds_before(self) -> float:
        """Wall time of earlier attempts in seconds."""
        return max((record.get("seconds", 0.0) for record in self.records), default=0.0)

    def seconds(self) -> float:
        """Wall time of the run in seconds, including earlier attempts up to the resumed step."""
        return time.perf_counter() - self._start

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record; numbers are written to TensorBoard too.

        Raises:
            OSError: if the record cannot be written.
        """
        try:
            if not self.path.exists():
                self._begin_again()
            self._file.write(_line(record))
            self._file.flush()
            self._add_events(record)
        except OSError as error:
            raise OSError(f"cannot write the log {self.path}: {error}; free disk space") from error
        self.records.append(dict(record))
        self._loggers.write(record)

    def flush(self) -> None:
        """Writes events that are held back."""
        self._events.flush()

    def _begin_again(self) -> None:
        """Writes all records again, after the folder was removed."""
        self._file.close()
        self._open()
        with suppress(OSError):
            self._events.close()
        self._events = Events(self.path.parent / _EVENTS)
        for record in self.records:
            self._add_events(record)

    def _add_events(self, record: Mapping[str, Any]) -> None:
        for name, value in numbers(record).items():
            self._events.add(name, value, record["step"])

    def _close(self) -> None:
        try:
            self._file.close()
            self._events.close()
            draw_curves(self.records, self.path.parent / CURVES)
        finally:
            self._loggers.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, without lines that cannot be read."""
    return _parsed(path)[0]


def _parsed(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The records of a log, and whether more than its last line cannot be read."""
    if not path.is_file():
        return [], False
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    parsed = [_record(line) for line in lines]
    records = [record for record in parsed if record is not None]
    # A crash leaves one line without an end; whole lines of other kinds are damage.
    is_cut = bool(parsed) and parsed[-1] is None and not _is_json(lines[-1])
    return records, len(lines) - len(records) > is_cut


def _record(line: str) -> dict[str, Any] | None:
    """The record of a line; None if it is none."""
    if not _is_json(line):
        return None
    record = json.loads(line)
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return record if type(record.get("seconds", 0.0)) in (int, float) else None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _set_aside(path: Path) -> None:
    numbers = itertools.count(1)
    copies = (path.with_name(f"{path.name}.damaged-{number}") for number in numbers)
    copy = next(copy for copy in copies if not copy.exists())
    shutil.copyfile(path, copy)
    warnings.warn(
        f"{path} has lines that cannot be read: it is kept as {copy.name}, and the run goes on "
        "with the records that can",
        stacklevel=3,
    )


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()
