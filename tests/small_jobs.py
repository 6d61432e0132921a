"""What jobs compute in tests; other processes import it."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.machine.default_device import default_device
from fewshot_blo.machine.memory import free_bytes
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


def looks_at_gpu(folder: Path, named: str) -> Callable[[int], tuple[int, float, float]]:
    """GPU, GiB that are free there, and later on; each of three jobs takes one item.

    A GPU has 60 GiB free until a job looks, then 45, and in the end 3.
    """
    current, free = [0], [0.0]
    pretended: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "set_device": lambda gpu: current.append(gpu),
        "current_device": lambda: current[-1],
        "mem_get_info": lambda device: (int(free[-1] * 2**30), 0),
        "memory_reserved": lambda device: 0,
        "memory_allocated": lambda device: 0,
    }
    for name, function in pretended.items():
        setattr(torch.cuda, name, function)

    def look(item: int) -> tuple[int, float, float]:
        device = torch.device(named) if named else default_device()
        gpu = current[-1] if device.index is None else device.index
        with (folder / f"{gpu}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            is_first = not list(folder.glob(f"{gpu}-*"))
            free.append(60.0 if is_first else 45.0)
            own = free_bytes(device)
            (folder / f"{gpu}-{item}").touch()
        while len(list(folder.glob("?-*"))) < 3:
            time.sleep(0.01)
        free.append(3.0)
        return gpu, own / 2**30, free_bytes(device) / 2**30

    return look


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
