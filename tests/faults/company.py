"""Two runs of a program in one folder at once, and clocks that are wrong."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from faults.child import in_child, start
from faults.programs import Program, programs
from faults.row import Row
from faults.same import difference


def measure(place: Path, each: int, names: Collection[str] = ()) -> Iterator[Row]:
    """A row for every command and kind.

    Args:
        place: an empty folder to work in.
        each: number of pairs of runs; half as many clocks.
        names: names of the programs; all by default.
    """
    for program in programs(place, names):
        folder, whole = place / "run", place / "whole"
        shutil.rmtree(folder, ignore_errors=True)
        program.prepare(folder)
        in_child(partial(program.run, folder), folder)
        folder.rename(whole)
        row = Row("two at once", program.name)
        for number in range(each):
            row.add(_two(program, folder, whole, number))
        yield row
        row = Row("clocks", program.name)
        for number in range((each + 1) // 2):
            row.add(_clock(program, folder, whole, number))
        yield row
        shutil.rmtree(whole)


def _two(program: Program, folder: Path, whole: Path, seed: int) -> str | None:
    """Why two runs at once left something else than one run, or None."""
    shutil.rmtree(folder, ignore_errors=True)
    program.prepare(folder)
    run = partial(program.run, folder)
    first = start(run, folder, name="first")
    time.sleep(random.Random(seed).uniform(0, 0.4))
    second = start(run, folder, name="second")
    both = first.wait(), second.wait()
    for ended in both:
        if "Traceback" in ended.text:
            return f"a traceback: {ended.text[-500:]}"
    done = [ended.status for ended in both].count(0)
    if not done:
        return f"none of the two ended well: {both[0].text[-300:]} / {both[1].text[-300:]}"
    return difference(whole, folder, versions=program.versions)


def _clock(program: Program, folder: Path, whole: Path, seed: int) -> str | None:
    """Why a run under a clock that jumps differs, or None."""
    shutil.rmtree(folder, ignore_errors=True)
    program.prepare(folder)

    def run() -> int:
        draw = random.Random(seed)
        time.time = lambda: draw.choice([0.0, 1e9, 4e9, draw.uniform(0, 4e9)])
        time.time_ns = lambda: int(time.time() * 1e9)
        return program.run(folder)

    ended = in_child(run, folder)
    if ended.status:
        return f"ended with {ended.status}: {ended.text[-500:]}"
    return difference(whole, folder, versions=program.versions)
