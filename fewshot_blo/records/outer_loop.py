"""``take_steps``: the resumable loop over outer steps, shared by ``train`` and ``solve``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fewshot_blo.errors import DivergenceError
from fewshot_blo.machine.memory import is_out_of_memory
from fewshot_blo.machine.processes import ALONE, Processes
from fewshot_blo.records.interrupts import interrupts
from fewshot_blo.records.loggers import Logger
from fewshot_blo.records.logs import RunLog
from fewshot_blo.records.progress import Progress
from fewshot_blo.records.tensor_files import LAST


@dataclass(frozen=True)
class Taken:
    """Text to show after an outer step.

    Attributes:
        words: figures to show in the progress; empty if unchanged.
        line: line to print; empty for none.
        saved: whether the step saved the run.
    """

    words: str = ""
    line: str = ""
    saved: bool = False


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
    run: OuterRun,
    *,
    steps: int,
    folder: Path | None,
    title: str,
    progress: bool,
    save_minutes: float = 10.0,
    processes: Processes = ALONE,
    loggers: Sequence[Logger] = (),
    settings: Mapping[str, Any] | None = None,
) -> bool:
    """Takes outer steps until the run is finished or interrupted, then saves it.

    In a folder, the first step is saved as well, and those at which a save is due. Of several
    processes the first one logs; all save, or stop, after the same step.

    Args:
        run: the run, new or resumed.
        steps: total number of outer steps.
        folder: folder of the run's log; None for no log.
        title: name of the loop in the progress.
        progress: show progress.
        save_minutes: minutes after a save at which another one is due; 0 for none by time.
        processes: those that take the steps together.
        loggers: further loggers, which the first process calls.
        settings: settings of the run, for the loggers.

    Returns:
        Whether it was interrupted (Ctrl-C, SIGTERM or SIGHUP) before it was finished.

    Raises:
        MemoryError: if the host's memory runs out; it names the step and the last save.
    """
    logs = folder is not None and processes.is_first
    writing = (
        RunLog(folder, step=run.step, loggers=loggers, settings=settings)
        if folder is not None and logs
        else nullcontext()
    )
    saves: list[int] = []  # The steps that were saved.
    shown = Progress(title, steps, "step", start=run.step, shown=progress and processes.is_first)
    with (
        interrupts(shown.say, saves=folder is not None) as stop,
        writing as log,
        shown,
        _memory_errors(run, folder),
        _lone_save(saves, folder),
    ):
        taken, saved = run.begin(log), time.monotonic()
        (stops,) = processes.any(stop.is_set())
        while True:
            if taken.line:
                shown.say(taken.line)
            if run.finished or stops:
                break
            taken = run.take(log)
            is_due = run.step == 1 or 0 < 60 * save_minutes <= time.monotonic() - saved
            (is_due,) = processes.any(is_due)
            if is_due and not taken.saved:
                run.save_last()
            if is_due or taken.saved:
                saved = time.monotonic()
                saves.append(run.step)
            (stops,) = processes.any(stop.is_set())
            if stops and not run.finished:  # Saving comes first: the terminal may be gone.
                break
            if taken.words:
                shown.figures(taken.words)
            shown.advance()
        run.save_last()
    return not run.finished


@contextmanager
def _lone_save(saves: list[int], folder: Path | None) -> Iterator[None]:
    """Removes the save of the first step if the run diverges before another one.

    There is nothing to go on from, and the folder can be used again with other settings.
    """
    try:
        yield
    except DivergenceError:
        if folder is not None and saves == [1]:
            (folder / LAST).unlink(missing_ok=True)
        raise


@contextmanager
def _memory_errors(run: OuterRun, folder: Path | None) -> Iterator[None]:
    """Says of the host's memory errors in which step they came, and from where to go on."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not is_out_of_memory(error):
            raise
        file = None if folder is None else folder / LAST
        saved = f"; {file} is the last save, to resume from" if file and file.exists() else ""
        raise MemoryError(
            f"memory ran out in outer step {run.step + 1}: compute fewer tasks at a time "
            f"(train.chunk 1), or use smaller images, tasks or networks{saved}"
        ) from error
