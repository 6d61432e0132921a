"""``RunLog``: the log of a training run as JSON lines, TensorBoard events and curves."""

from __future__ import annotations

import itertools
import json
import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewshot_blo.records.events import Events
from fewshot_blo.records.figure import COLOURS, new_figure, panels, save_figure, side_legend
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.quantity import ACCURACY

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
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        self.path = folder / LOG
        records, is_damaged = _parsed(self.path)
        if is_damaged:
            _set_aside(self.path)
        self.records = [record for record in records if record["step"] <= step]
        self._start = time.perf_counter() - self._seconds_before()
        self._open()
        self._events = Events(folder / _EVENTS, purge_step=step + 1)

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
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add(name, float(value), record["step"])

    def _close(self) -> None:
        self._file.close()
        self._events.close()
        draw_curves(self.records, self.path.parent / CURVES)


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


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Draws loss and metric over outer steps, in training and validation, as a PNG."""
    figure = new_figure("Training: loss and metric of each outer step", 13, 4)
    loss, metric = panels(figure, 1, 2)
    key = _metric_of(records)
    factor = ACCURACY.factor if key == ACCURACY.key else 1.0
    _plot(loss, _points(records, "loss/outer"), "query loss (F)", COLOURS[0])
    _plot(loss, _points(records, "loss/inner"), "support loss (G)", COLOURS[1])
    _plot(metric, _points(records, f"{key}/train", factor), "training tasks", COLOURS[0])
    _plot_validation(metric, records, f"{key}/validation", factor)
    name = key.replace("_", " ")
    label = ACCURACY.label if key == ACCURACY.key else name
    loss.set(xlabel="outer step (count)", ylabel="loss", title="Loss")
    metric.set(xlabel="outer step (count)", ylabel=label, title=name.capitalize())
    if key == ACCURACY.key:
        metric.set_ylim(None, 101)
    for axes in (loss, metric):
        if axes.lines:
            side_legend(axes)
    save_figure(figure, path)


def _metric_of(records: list[dict[str, Any]]) -> str:
    """The metric that validation or training tasks have in a log."""
    names = (name.partition("/") for record in records for name in record)
    return next((key for key, _, part in names if part in ("validation", "train")), ACCURACY.key)


def _points(
    records: list[dict[str, Any]], name: str, factor: float = 1.0
) -> list[tuple[int, float]]:
    return [(r["step"], factor * r[name]) for r in records if name in r]


def _plot(axes: Axes, points: list[tuple[int, float]], label: str, colour: str) -> None:
    """Draws a faint curve with its moving average over a tenth of the steps."""
    if not points:
        return
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=colour, alpha=0.25)
    smooth = []
    for index in range(len(values)):
        # A centred window: a mean over past steps only lags behind a falling curve.
        reach = min(len(values) // 20, index, len(values) - 1 - index)
        window = values[index - reach : index + reach + 1]
        smooth.append(sum(window) / len(window))
    axes.plot(steps, smooth, color=colour, label=label)


def _plot_validation(
    axes: Axes, records: list[dict[str, Any]], name: str, factor: float
) -> None:
    """Draws validation means with a band of their intervals, where the log has them."""
    points = _points(records, name, factor)
    if not points:
        return
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=COLOURS[1], marker="o", markersize=4, label="validation tasks")
    own = [r for r in records if name in r and f"{name}_interval" in r]
    if own:
        middle, half = ([factor * r[key] for r in own] for key in (name, f"{name}_interval"))
        low = [m - h for m, h in zip(middle, half, strict=True)]
        high = [m + h for m, h in zip(middle, half, strict=True)]
        where, style = [r["step"] for r in own], {"color": COLOURS[1], "linewidth": 0.0}
        axes.fill_between(where, low, high, alpha=0.2, label="± 95 % interval", **style)


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()
