"""The one resumable loop over outer steps, of training and of any bilevel problem."""

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
    """What there is to say of an outer step.

    Attributes:
        words: for the progress of the run; empty for nothing new.
        line: that stays; empty for none.
    """

    words: str = ""
    line: str = ""


class OuterRun(Protocol):
    """A run between two outer steps.

    Attributes:
        step: outer steps taken.
        finished: whether there is none to take.
    """

    @property
    def step(self) -> int: ...

    @property
    def finished(self) -> bool: ...

    def begin(self, log: RunLog | None) -> Taken:
        """Before the first step of this attempt."""
        ...

    def take(self, log: RunLog | None) -> Taken:
        """Takes an outer step, records it where that is due, and saves where that is due."""
        ...

    def save_last(self) -> None:
        """Writes all that the run needs to go on."""
        ...


def take_steps(
    run: OuterRun, *, steps: int, folder: Path | None, title: str, progress: bool
) -> bool:
    """Takes outer steps until the run is finished, or interrupted: then it is saved, and goes on.

    Args:
        run: taken up where it stands.
        steps: outer steps in all.
        folder: of the run's log; None for none.
        title: what is done, for the progress.
        progress: show progress.

    Returns:
        Whether it was interrupted (Ctrl-C or SIGTERM) before it was finished.
    """
    writing = nullcontext() if folder is None else RunLog(folder, step=run.step)
    shown = Progress(title, steps, "step", start=run.step, shown=progress)
    with interrupts(shown.say) as stop, writing as log, shown:
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
