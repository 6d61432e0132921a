"""Measuring one row of the grid with the contenders in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import peers
from contest import OURS
from grid import Cell, as_data
from roofline import floor, work
from timing import Spread, ratios, take_turns
from worker import Allocator, MeasurementError, Worker

TOLERANCE = 1e-8
"""Largest relative difference of the float64 gradients of contenders that are compared."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        repeats: rounds of timing.
        row_seconds: after which a row takes no further round of timing; after three times as long
            it is given up.
        check_tasks: tasks of the comparison in float64.
        peer_tasks: tasks that the peers are timed on; their time, which is that of a loop over
            tasks, is scaled to all tasks. 0 for all tasks.
        peers: whether to measure them.
    """

    repeats: int = 5
    row_seconds: float = 120.0
    check_tasks: int = 2
    peer_tasks: int = 0
    peers: bool = True


Contender = tuple[str, Allocator]


def measure(
    cell: Cell,
    workers: Mapping[Allocator, Worker],
    rates: dict[str, float] | None,
    effort: Effort,
    missing: Mapping[str, str],
) -> dict[str, Any]:
    """One row as plain data: what was measured, and remarks about what could not be.

    Args:
        cell: the configuration.
        workers: one a setting of the allocator; ours is timed in "kept".
        rates: of the device in the cell's precision; None where they are unknown.
        effort: how much to measure.
        missing: peers that cannot run here, and why.
    """
    start = time.monotonic()
    row = _Row(cell, workers, effort, start + 3 * effort.row_seconds)
    if row.attempt(OURS, row.compare):
        for name in peers.contenders(cell) if effort.peers else ():
            if name in missing:
                row.remarks.append(f"no {name}")
            else:
                row.attempt(name, row.compare)
        if row.attempt(OURS, row.prepare):
            for name in [name for name in row.found if name != OURS]:
                row.attempt(name, row.prepare)
            row.time(start + effort.row_seconds - time.monotonic())
    return row.result(rates, time.monotonic() - start)


class _Row:
    """A row while it is measured."""

    def __init__(
        self, cell: Cell, workers: Mapping[Allocator, Worker], effort: Effort, deadline: float
    ) -> None:
        self.cell, self.workers, self.effort, self.deadline = cell, workers, effort, deadline
        few = min(cell.tasks, effort.peer_tasks or cell.tasks)
        self.peer_cell = replace(cell, tasks=few)
        self.found: dict[str, dict[str, Any]] = {}
        self.seconds: dict[Contender, list[float]] = {}
        self.remarks: list[str] = []

    def attempt(self, name: str, action: Callable[[str], None]) -> bool:
        """Whether an action on a contender succeeded; if not, the contender is left out."""
        try:
            action(name)
        except MeasurementError as error:
            self.remarks.append(f"{name}: {error}")
            self.found.pop(name, None)
            return False
        return True

    def compare(self, name: str) -> None:
        """Compares a contender's gradient with ours, in float64."""
        few = replace(self.cell, tasks=min(self.cell.tasks, self.effort.check_tasks))
        answer = self.workers["kept"].ask("compare", name, few, deadline=self.deadline)
        if not answer["difference"] <= TOLERANCE:
            raise MeasurementError(
                f"its float64 gradient differs from ours by {answer['difference']:.0e}"
            )
        self.found[name] = answer

    def prepare(self, name: str) -> None:
        """Builds a contender in every process that times it, and takes its peak memory."""
        cell = self.cell if name == OURS else self.peer_cell
        for allocator in self._allocators(name):
            worker = self.workers[allocator]
            answer = worker.ask("prepare", name, cell, deadline=self.deadline)
            self.found[name].update(answer)
        if "peak_bytes" not in self.found[name]:
            self.found[name]["peak_bytes"] = self.workers["kept"].ask(
                "weigh", name, deadline=self.deadline
            )

    def time(self, budget: float) -> None:
        """Times all contenders in turns."""
        contenders = [(name, a) for name in self.found for a in self._allocators(name)]

        def seconds(contender: Contender) -> float:
            name, allocator = contender
            measured = self.workers[allocator].ask("time", name, deadline=self.deadline)
            share = self.cell.tasks / self.peer_cell.tasks if name != OURS else 1.0
            return float(measured) * share

        try:
            for found in take_turns(
                contenders, seconds, repeats=self.effort.repeats, budget=budget
            ):
                for contender, value in found.items():
                    self.seconds.setdefault(contender, []).append(value)
        except MeasurementError as error:
            self.remarks.append(f"timing: {error}")

    def _allocators(self, name: str) -> list[Allocator]:
        return ["kept"] if name == OURS else list(self.workers)

    def result(self, rates: dict[str, float] | None, row_seconds: float) -> dict[str, Any]:
        """All that was found."""
        for (name, allocator), values in self.seconds.items():
            entry = self.found[name]
            entry.setdefault("runs", {})[allocator] = values
            if name == OURS:
                spread = Spread.of(values)
                entry["seconds"] = asdict(spread)
                entry["tasks_per_second"] = self.cell.tasks / spread.median
        for name, entry in self.found.items():
            if name != OURS and "runs" in entry:
                entry["times_faster"] = self._ratios(entry["runs"])
                entry["timed_tasks"] = self.peer_cell.tasks
        row = {"cell": as_data(self.cell), "contenders": self.found, "remarks": self.remarks}
        return {**row, "floor": self._floor(rates), "row_seconds": row_seconds}

    def _floor(self, rates: dict[str, float] | None) -> dict[str, Any]:
        """The floor, what it rests on, and how many times longer ours takes."""
        found: dict[str, Any] = work(self.cell)._asdict()
        if rates is None:
            self.remarks.append("no floor: the device's rates could not be measured")
            return found
        bound = floor(self.cell, rates)
        found |= {**bound._asdict(), **{f"{name}/s": rate for name, rate in rates.items()}}
        median = self.found.get(OURS, {}).get("seconds", {}).get("median")
        return found if median is None else {**found, "distance": median / bound.seconds}

    def _ratios(self, runs: dict[str, list[float]]) -> dict[str, Any]:
        """How many times our time a peer takes, in pairs of the same round."""
        mine = self.seconds[(OURS, "kept")]
        found = {"as run": asdict(ratios(runs.get("default", runs["kept"]), mine))}
        if "default" in runs:
            found["same allocator"] = asdict(ratios(runs["kept"], mine))
        return found
