"""``take_steps``: the resumable loop over outer steps, shared by ``train`` and ``solve``."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fewshot_blo.records.interrupts import interrupts
from fewshot_blo.records.logs import RunLog
from fewshot_blo.records.progress import Progress


@dataclass(frozen=True)
class Taken:
    """Text to show after an outer step.

    Attributes:
        words: figures to show in the progress; empty if unchanged.
        line: line to print; empty for none.
    """

    words: str = ""
    line: str = ""


class OuterRun(Protocol):
    """A run that ``take_steps`` advances.

    Attributes:
        step: number of outer steps taken.
        finished: whether no step is left.
    """

    @property
    def step(self) -> int: ...

    @property
    def finished(self) -> bool: ...

    def begin(self, log: RunLog | None) -> Taken:
        """Called before the first step of this attempt."""
        ...

    def take(self, log: RunLog | None) -> Taken:
        """Takes an outer step; logs and saves if they are due."""
        ...

    def save_last(self) -> None:
        """Saves everything needed to resume the run."""
        ...


def take_steps(
    run: OuterRun, *, steps: int, folder: Path | None, title: str, progress: bool
) -> bool:
    """Takes outer steps until the run is finished or interrupted, then saves it.

    Args:
        run: the run, new or resumed.
        steps: total number of outer steps.
        folder: folder of the run's log; None for no log.
        title: name of the loop in the progress.
        progress: show progress.

    Returns:
        Whether it was interrupted (Ctrl-C or SIGTERM) before it was finished.
    """
    writing = nullcontext() if folder is None else RunLog(folder, step=run.step)
    shown = Progress(title, steps, "step", start=run.step, shown=progress)
    with interrupts(shown.say, saves=folder is not None) as stop, writing as log, shown:
        taken = run.begin(log)
        while True:
            if taken.line:
                shown.say(taken.line)
            if run.finished or stop.is_set():
                break
            taken = run.take(log)
            if taken.words:
                shown.figures(taken.words)
            shown.advance()
        run.save_last()
    return not run.finished
