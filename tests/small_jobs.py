"""What jobs compute in tests; other processes import it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fewshot_blo.records.interrupts import interrupts
from fewshot_blo.records.progress import Progress


def squares() -> Callable[[int], tuple[int, int, int]]:
    """The square of a number, the threads, and the process; prints and counts."""

    def square(number: int) -> tuple[int, int, int]:
        print(f"squaring {number}")
        with Progress("squaring", 2, "step") as bar:
            bar.advance()
            bar.advance()
        return number**2, torch.get_num_threads(), os.getpid()

    return square


def accidents(folder: Path) -> Callable[[str], str]:
    """Ends as an item says; writes the process to a file before it waits."""

    def meet(item: str) -> str:
        (folder / f"{item}-{os.getpid()}").touch()
        if item == "wait":
            time.sleep(120)
        elif item == "die":
            _once(folder, "[wb]*")
            os.kill(os.getpid(), signal.SIGKILL)
        elif item == "interrupt":
            _once(folder, "wait")
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(120)
        elif item == "save":
            _save(folder)
        elif item == "stop":
            _once(folder, "save")
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(120)
        elif item == "hang":
            with interrupts(print, saves=True):
                (folder / f"hanging-{os.getpid()}").touch()
                time.sleep(120)
        elif item == "twice":
            _once(folder, "hanging")
            with interrupts(print, saves=True) as stop:
                os.kill(os.getppid(), signal.SIGINT)
                stop.wait()
                os.kill(os.getppid(), signal.SIGINT)
                time.sleep(120)
        return item

    return meet


def _save(folder: Path) -> None:
    """Waits to be ended, prints much, and saves."""
    with interrupts(print, saves=True) as stop:
        stop.wait()
        time.sleep(0.5)
        for number in range(1000):
            print(f"line {number} " + 100 * ".")
        (folder / "saved").touch()


def _once(folder: Path, item: str) -> None:
    """Waits for another job to begin an item."""
    while not list(folder.glob(f"{item}-*")):
        time.sleep(0.01)
