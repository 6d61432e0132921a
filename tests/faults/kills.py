"""Kills and full disks at the writes of every command, and what is left afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from faults.child import Ended, Fault, Kind, in_child
from faults.programs import Program, programs
from faults.row import Row
from faults.same import difference, different

KINDS: tuple[Kind, ...] = ("kill", "torn", "full", "read-only")


def measure(
    place: Path, each: int, names: Collection[str] = (), kinds: Sequence[Kind] = KINDS
) -> Iterator[Row]:
    """A row for every command and kind of fault.

    Args:
        place: an empty folder to work in.
        each: faults of a kind for each command, spread over its writes.
        names: names of the programs; all by default.
        kinds: the kinds.
    """
    for program in programs(place, names):
        folder, whole = place / "run", place / "whole"
        ended = _run(program, folder)
        folder.rename(whole)
        rows, writes = [Row(kind, program.name) for kind in kinds], ended.writes
        for row, kind in zip(rows, kinds, strict=True):
            if ended.status:
                row.add(f"ends with {ended.status} without a fault: {ended.text[-300:]}")
                continue
            for place_of in _spread(writes, each):
                fault = Fault(kind, place_of)
                why = _survives(program, folder, whole, fault)
                row.add(why and f"write {place_of} of {writes}: {why}")
        yield from rows
        shutil.rmtree(whole)


def _spread(writes: int, each: int) -> list[int]:
    if writes <= each:
        return list(range(writes))
    if each == 1:
        return [writes // 2]
    return [round(number * (writes - 1) / (each - 1)) for number in range(each)]


def _run(program: Program, folder: Path, fault: Fault | None = None) -> Ended:
    shutil.rmtree(folder, ignore_errors=True)
    program.prepare(folder)
    return in_child(partial(program.run, folder), folder, fault)


def _survives(program: Program, folder: Path, whole: Path, fault: Fault) -> str | None:
    """Why the results are not those of a run without a fault, or None."""
    before = folder.with_name("before")
    shutil.rmtree(before, ignore_errors=True)
    program.prepare(before)
    ended = _run(program, folder, fault)
    if fault.kind in ("kill", "torn"):
        if ended.status != -9:
            return f"ended with {ended.status} instead of the kill: {ended.text[-300:]}"
    elif "Traceback" in ended.text:
        return f"a traceback: {ended.text[-600:]}"
    for old in filter(Path.is_file, before.rglob("*")):
        name = old.relative_to(before)
        if not (folder / name).is_file():
            return f"{name} of before is gone"
        if old.read_bytes() != (folder / name).read_bytes() and different(
            whole / name, folder / name
        ):
            return f"{name} is neither that of before nor the new one"
    _age(folder)
    again = in_child(partial(program.run, folder), folder)
    if again.status:
        return f"run again, it ends with {again.status}: {again.text[-600:]}"
    return difference(whole, folder, versions=program.versions)


def _age(folder: Path) -> None:
    """Temporary files of a process that was killed are swept once they are a minute old."""
    for file in folder.rglob(".*.tmp"):
        os.utime(file, (0, 0))
