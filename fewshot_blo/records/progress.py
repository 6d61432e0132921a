"""``Progress``: a progress bar on terminals and in notebooks, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import NoReturn

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # In a notebook without ipywidgets, tqdm warns and draws its bar as text, which is fine.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

_SELDOM, _OFTEN = 30.0, 5.0

Report = Callable[[str, str, int, int], None]
"""Takes the name of a loop and of its unit, and the numbers of units added and finished."""
_report: Report | None = None


def report_to(report: Report) -> None:
    """From now on, this process reports its progress and shows none itself."""
    global _report
    _report = report


class Progress:
    """Shows the progress of a loop.

    On a terminal or in a notebook it is a bar. Elsewhere (pipes, log files) it prints a line to
    stderr every 30 s, and at each tenth of the total if the last line is at least 5 s old. After
    ten minutes, the interval is 1/20 of the elapsed time. A loop of less than 5 s prints nothing.

    Args:
        what: name of the loop, such as "training".
        total: total number of units.
        unit: name of the unit, in the singular.
        start: number of units done before, by a run that is resumed.
        shown: False shows nothing.
    """

    def __init__(
        self, what: str, total: int, unit: str, *, start: int = 0, shown: bool = True
    ) -> None:
        self.what, self.total, self.unit, self.start = what, total, unit, start
        # A program without a console has no stderr.
        self._shown, self._done, self._figures = shown and sys.stderr is not None, start, ""
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> Progress:
        self._begun = self._said_at = time.monotonic()
        self._said = self._done
        if self._shown and _report is not None:
            _report(self.what, self.unit, self.total, self.start)
        elif self._shown and _is_watched():
            # With leave=None, a nested bar is removed when it is full.
            self._bar = tqdm(
                total=self.total, initial=self.start, desc=self.what, unit=self.unit, leave=None
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif (
            self._shown
            and _report is None
            and time.monotonic() - self._begun >= _OFTEN
            and self._said < self._done
        ):
            self._line(time.monotonic())

    def advance(self, count: int = 1) -> None:
        """Adds ``count`` finished units."""
        self._done += count
        if self._shown and _report is not None:
            _report(self.what, self.unit, 0, count)
        elif self._bar is not None:
            self._bar.update(count)
        elif self._shown:
            now = time.monotonic()
            if self._is_due(now):
                self._line(now)

    def extend(self, count: int) -> None:
        """Adds ``count`` units to the total."""
        self.total += count
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.refresh()

    def figures(self, words: str) -> None:
        """Sets the text shown beside the count, such as the loss."""
        self._figures = words
        if self._bar is not None:
            self._bar.set_postfix_str(words)

    def say(self, line: str) -> None:
        """Prints a line to stdout, above the bar; does nothing if progress is not shown."""
        if self._shown:
            self.write(line)

    @staticmethod
    def write(line: str) -> None:
        """Prints a line to stdout, above all bars."""
        tqdm.write(line)
        sys.stdout.flush()

    def _is_due(self, now: float) -> bool:
        tenth = 10 * self._done // self.total > 10 * self._said // self.total
        waited = now - self._said_at
        return waited >= max(_SELDOM, (now - self._begun) / 20) or (tenth and waited >= _OFTEN)

    def _line(self, now: float) -> None:
        self._said, self._said_at = self._done, now
        seconds, done = now - self._begun, self._done - self.start
        parts = [f"{self.what}: {self.unit} {self._done} of {self.total}", self._figures]
        parts.append(_rate(done, seconds, self.unit))
        if self._done < self.total:
            parts.append(f"{_duration(seconds / done * (self.total - self._done))} left")
        else:
            parts.append(f"{_duration(seconds)} in all")
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)


def _is_watched() -> bool:
    """Whether stderr is a terminal, or the code runs in a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", ())


def _rate(done: int, seconds: float, unit: str) -> str:
    rate = done / max(seconds, 1e-9)
    return f"{rate:.3g} {unit}s/s" if rate >= 1 else f"{1 / rate:.3g} s a {unit}"


def _duration(seconds: float) -> str:
    """A rounded duration, such as 40 s, 8 min, 2 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
