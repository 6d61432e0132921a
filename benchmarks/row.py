"""Measuring one row of the grid: ours first, then all contenders in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import peers
from contest import OURS
from grid import Cell, as_data
from roofline import floor, work
from timing import Spread, ratios, take_turns
from worker import Allocator, MeasurementError, Worker

TOLERANCE = 1e-8
"""Largest relative difference of the float64 gradients of contenders that are compared."""
OWN_RUNS = 2
"""Of ours before the peers are measured."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        repeats: rounds of timing.
        row_seconds: of the rounds, after which no further one starts once there are two. What
            comes before them does not count.
        own_seconds: that ours may take until it has a figure, and again for the gradient that
            others are compared with; a row that is late is given up.
        peer_seconds: that a peer may take until it is ready, compilation included, and for a step;
            one that is late is left out.
        check_tasks: tasks of the comparison in float64.
        peer_tasks: tasks that the peers in PyTorch are timed on; their time, which is that of a
            loop over tasks, is scaled to all tasks. 0 for all tasks.
        peers: names of those to measure.
    """

    repeats: int = 5
    row_seconds: float = 120.0
    own_seconds: float = 300.0
    peer_seconds: float = 120.0
    check_tasks: int = 2
    peer_tasks: int = 0
    peers: tuple[str, ...] = peers.PEERS


class Processes(Protocol):
    """What a row needs of ``Pool``."""

    device: str

    def allocators(self, name: str) -> tuple[Allocator, ...]:
        """Settings with which a contender is timed, that of its comparison first."""

    def worker(self, name: str, allocator: Allocator) -> Worker:
        """The process of a contender."""

    def new_row(self) -> None:
        """Lets go of what the processes hold."""


class Interrupted(Exception):
    """An interrupt while a row was measured; ``row`` is what there is of it."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__("interrupted")
        self.row = row


Contender = tuple[str, Allocator]


def measure(
    cell: Cell,
    pool: Processes,
    rates: dict[str, float] | None,
    effort: Effort,
    missing: Mapping[str, str],
) -> dict[str, Any]:
    """One row as plain data: what was measured, and remarks about what could not be.

    Args:
        cell: the configuration.
        pool: the measuring processes.
        rates: of the device in the cell's precision; None where they are unknown.
        effort: how much to measure.
        missing: peers that cannot run here, and why.

    Raises:
        Interrupted: at an interrupt, with what was measured by then.
    """
    start = time.monotonic()
    row = _Row(cell, pool, effort)
    try:
        row.run(missing)
    except KeyboardInterrupt:
        row.remarks.append("interrupted")
        raise Interrupted(row.result(rates, time.monotonic() - start)) from None
    return row.result(rates, time.monotonic() - start)


class _Row:
    """A row while it is measured."""

    def __init__(self, cell: Cell, pool: Processes, effort: Effort) -> None:
        self.cell, self.pool, self.effort = cell, pool, effort
        self.few = replace(cell, tasks=min(cell.tasks, effort.check_tasks))
        self.found: dict[str, dict[str, Any]] = {}
        self.own: list[float] = []
        self.reference: object = None
        self.seconds: dict[Contender, list[float]] = {}
        self.remarks: list[str] = []

    def run(self, missing: Mapping[str, str]) -> None:
        """Measures ours, then the peers beside it."""
        self.pool.new_row()
        wanted = [name for name in peers.contenders(self.cell) if name in self.effort.peers]
        self.remarks += [f"no {name}" for name in wanted if name in missing]
        rivals = [name for name in wanted if name not in missing]
        if not self._attempt(OURS, self._measure_ours):
            return
        # JAX and PyTorch do not hold a GPU's memory together.
        apart = peers.JAX if self.pool.device != "cpu" else ()
        self._take_turns([OURS, *self._ready([name for name in rivals if name not in apart])])
        for name in rivals:
            if name in apart:
                self.pool.new_row()
                self._take_turns(self._ready([name]))

    def _measure_ours(self, name: str) -> None:
        """Prepares and times ours, and only then has it compute what others are compared with."""
        worker = self.pool.worker(name, "kept")
        deadline = time.monotonic() + self.effort.own_seconds
        self.found[name] = worker.ask("prepare", name, self.cell, deadline=deadline)
        for _ in range(OWN_RUNS):
            self.own.append(worker.ask("time", name, deadline=deadline))
        if "peak_bytes" not in self.found[name]:
            self.found[name]["peak_bytes"] = worker.ask("weigh", name, deadline=deadline)
        deadline = time.monotonic() + self.effort.own_seconds
        self.reference = worker.ask("reference", self.few, deadline=deadline)
        self.found[name] |= worker.ask("compare", name, self.few, self.reference, deadline=deadline)

    def _ready(self, names: list[str]) -> list[str]:
        """Those of the peers that agree with ours and could be prepared."""
        return [name for name in names if self._attempt(name, self._prepare)]

    def _prepare(self, name: str) -> None:
        """Compares a peer with ours and builds it in every process that times it."""
        deadline = time.monotonic() + self.effort.peer_seconds
        allocators = self.pool.allocators(name)
        worker = self.pool.worker(name, allocators[0])
        answer = worker.ask("compare", name, self.few, self.reference, deadline=deadline)
        if not answer["difference"] <= TOLERANCE:
            raise MeasurementError(
                f"its float64 gradient differs from ours by {answer['difference']:.0e}"
            )
        self.found[name] = answer
        cell = replace(self.cell, tasks=self._timed_tasks(name))
        for allocator in allocators:
            ready = self.pool.worker(name, allocator).ask("prepare", name, cell, deadline=deadline)
            self.found[name].update(ready)
        if "peak_bytes" not in self.found[name]:
            self.found[name]["peak_bytes"] = worker.ask("weigh", name, deadline=deadline)

    def _take_turns(self, names: list[str]) -> None:
        """Times contenders in turns; one that fails is left out of the further rounds."""
        contenders = [(name, a) for name in names for a in self.pool.allocators(name)]

        def seconds(contender: Contender) -> float | None:
            name, allocator = contender
            worker = self.pool.worker(name, allocator)
            deadline = time.monotonic() + self.effort.peer_seconds
            try:
                measured = float(worker.ask("time", name, deadline=deadline))
            except MeasurementError as error:
                self.remarks.append(f"{name}: {error}")
                contenders.remove(contender)
                return None
            return measured * self.cell.tasks / self._timed_tasks(name)

        for found in take_turns(
            contenders, seconds, repeats=self.effort.repeats, budget=self.effort.row_seconds
        ):
            for contender, value in found.items():
                self.seconds.setdefault(contender, []).append(value)

    def _timed_tasks(self, name: str) -> int:
        """All, but for peers that take one task after another in Python."""
        if name == OURS or name in peers.JAX:
            return self.cell.tasks
        return min(self.cell.tasks, self.effort.peer_tasks or self.cell.tasks)

    def _attempt(self, name: str, action: Callable[[str], None]) -> bool:
        """Whether an action on a contender succeeded; if not, a remark says why."""
        try:
            action(name)
        except MeasurementError as error:
            self.remarks.append(f"{name}: {error}")
            return False
        return True

    def result(self, rates: dict[str, float] | None, row_seconds: float) -> dict[str, Any]:
        """All that was found."""
        mine = self.seconds.get((OURS, "kept"), self.own)
        if mine:
            spread = Spread.of(mine)
            self.found[OURS] |= {
                "runs": {"kept": mine},
                "seconds": asdict(spread),
                "tasks_per_second": self.cell.tasks / spread.median,
            }
        for (name, allocator), values in self.seconds.items():
            if name != OURS:
                self.found[name].setdefault("runs", {})[allocator] = values
                self.found[name]["timed_tasks"] = self._timed_tasks(name)
        for name, entry in self.found.items():
            if name != OURS and "runs" in entry:
                entry["times_faster"] = self._ratios(name, entry["runs"], mine)
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

    def _ratios(self, name: str, runs: dict[str, list[float]], mine: list[float]) -> dict[str, Any]:
        """How many times our time a peer takes: in pairs of the same round, or over our median."""
        if name in peers.JAX and self.pool.device != "cpu":
            mine = [statistics.median(mine)] * self.effort.repeats
        found = {"as run": asdict(ratios(runs.get("default", runs.get("kept", [])), mine))}
        if {"default", "kept"} <= runs.keys():
            found["same allocator"] = asdict(ratios(runs["kept"], mine))
        return found
