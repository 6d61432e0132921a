"""Progress of long work: a bar on a terminal or in a notebook, elsewhere a line at intervals."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

_SECONDS = 30.0
"""Between two lines where there is no terminal."""


class Progress:
    """Counts units of work, in a ``with`` block.

    Args:
        total: units of work.
        title: what is done, as in "training".
        unit: word for one unit of work.
        start: units that were done before.
        show: show anything at all.
    """

    def __init__(
        self, total: int, title: str, unit: str, *, start: int = 0, show: bool = True
    ) -> None:
        self._total, self._title, self._unit = total, title, unit
        self._start = self._done = start
        self._began = self._told = time.perf_counter()
        self._words = ""
        self._bar = _bar(total, title, unit, start) if show and _is_interactive() else None
        self._lines = show and self._bar is None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int = 1, words: str = "") -> None:
        """So many more are done.

        Args:
            count: units of work.
            words: what there is to say of them, until there is something newer.
        """
        self._done += count
        self._words = words or self._words
        if self._bar is not None:
            if words:
                self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(count)
        now = time.perf_counter()
        if self._lines and now - self._told >= _SECONDS:
            self._told = now
            print(self._line(now - self._began), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        rate = (self._done - self._start) / seconds
        left = (self._total - self._done) / rate if rate else 0.0
        parts = (
            f"{self._title}: {self._unit} {self._done} of {self._total}",
            self._words,
            f"{rate:.3g} {self._unit}s/s" if rate >= 1 else f"{1 / rate:.3g} s/{self._unit}",
            f"{_duration(left)} left",
        )
        return ", ".join(part for part in parts if part)

    def tell(self, line: str) -> None:
        """Prints a line that stays, above a bar."""
        if self._bar is not None:
            self._bar.clear()
        print(line, flush=True)
        if self._bar is not None:
            self._bar.refresh()


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _is_interactive() -> bool:
    """Whether there is a terminal or a notebook to draw in."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _bar(total: int, title: str, unit: str, start: int) -> Any:
    with warnings.catch_warnings():  # Of a notebook without widgets, which gets a bar of letters.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

        return tqdm(total=total, desc=title, unit=unit, initial=start)
