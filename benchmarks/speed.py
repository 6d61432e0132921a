"""Times and peak memory of an outer step beside ``higher`` and learn2learn.

    python benchmarks/speed.py                                    # the rows for this machine
    python benchmarks/speed.py --rows gpu --seconds 240 --output results/gpu.json
    python benchmarks/speed.py --network conv4-64-28 --tasks 4 16 64 --steps 1 5
    python benchmarks/speed.py --rows cpu --method penalty        # some of the named rows

Each row: the same network, weights and tasks for all; outer gradients compared in float64; then the
contenders take turns in the row's precision. ``benchmarks/README.md`` explains the table. It is
printed and written, with all figures as JSON, after every row.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from grid import METHODS, PRECISIONS, ROWS, Cell, cross
from peers import CACHED, HIGHER, LEARN2LEARN
from row import Effort, measure
from table import markdown
from worker import Allocator, MeasurementError, Worker

from fewshot_blo.kernel.graph import GraphMode
from tasks.files import atomic_write

FILTERS = ("network", "method", "adapted", "tasks", "steps", "shot", "precision")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the rows that were asked for."""
    options = _parse(arguments)
    effort = Effort(
        options.repeats,
        options.row_seconds,
        options.check_tasks,
        options.peer_tasks,
        not options.no_peers,
    )
    start = time.monotonic()
    settings = {"seed": options.seed, "chunk": options.chunk, "graph": options.graph}
    pool = _Pool(options.device, settings)
    report: dict[str, Any] = {**settings, "rows": [], "not_started": []}
    cells = _cells(options)
    try:
        report["machine"] = pool.describe()
        missing = {} if options.no_peers else pool.missing()
        report["missing"] = missing
        for name, reason in missing.items():
            print(f"{name} is skipped: {reason}", flush=True)
        for cell in cells:
            if options.seconds and time.monotonic() - start > options.seconds:
                report["not_started"].append(cell.name)
                continue
            rates = pool.rates(cell)
            row = measure(cell, pool.workers(), rates, effort, missing)
            report["rows"].append(row)
            _write(report, options.output)
            print(markdown([row]).splitlines()[-1], flush=True)
    finally:
        pool.stop()
    _write(report, options.output)
    print(markdown(report["rows"]))
    for name in report["not_started"]:
        print(f"not started, out of time: {name}")


class _Pool:
    """The measuring processes, and what holds for all rows.

    On the host, freed memory kept or returned makes a difference, and each row has new processes;
    on a GPU one process measures all rows, until it fails.
    """

    def __init__(self, device: str, settings: dict[str, Any]) -> None:
        self._device, self._settings = device, settings
        self._allocators: tuple[Allocator, ...] = (
            ("kept", "default") if device == "cpu" else ("kept",)
        )
        self._workers: dict[Allocator, Worker] = {}
        self._rates: dict[str, dict[str, float] | None] = {}

    def workers(self) -> dict[Allocator, Worker]:
        """Processes for the next row."""
        if self._device == "cpu":
            self.stop()
        for allocator in self._allocators:
            self._worker(allocator)
        for allocator in self._allocators:
            self._ask(allocator, "release")
        return self._workers

    def describe(self) -> dict[str, object]:
        """Machine and versions, as the measuring process sees them."""
        return self._ask("kept", "describe")

    def missing(self) -> dict[str, str]:
        """Peers that cannot run here, and why."""
        found = {name: self._ask("kept", "missing", name) for name in (HIGHER, CACHED, LEARN2LEARN)}
        return {name: reason for name, reason in found.items() if reason is not None}

    def rates(self, cell: Cell) -> dict[str, float] | None:
        """Ceilings of the device, measured once a precision; None where that fails."""
        if cell.precision not in self._rates:
            try:
                self._rates[cell.precision] = self._ask("kept", "rates", cell)
            except MeasurementError:
                self._rates[cell.precision] = None
        return self._rates[cell.precision]

    def stop(self) -> None:
        """Ends the processes."""
        for worker in self._workers.values():
            worker.stop()
        self._workers.clear()

    def _worker(self, allocator: Allocator) -> Worker:
        if allocator not in self._workers or not self._workers[allocator].alive:
            self._workers[allocator] = Worker(self._device, allocator, self._settings)
        return self._workers[allocator]

    def _ask(self, allocator: Allocator, request: str, *arguments: object) -> Any:
        deadline = time.monotonic() + 120
        return self._worker(allocator).ask(request, *arguments, deadline=deadline)


def _cells(options: argparse.Namespace) -> list[Cell]:
    """The named rows, those of them that fit the filters, or the filters' cross product."""
    values = {name: getattr(options, name) for name in FILTERS if getattr(options, name)}
    if options.rows is None and values:
        return list(cross(Cell(), **values))
    named = ROWS[options.rows or ("gpu" if options.device == "cuda" else "cpu")]
    return [
        cell
        for cell in named
        if all(getattr(cell, name) in allowed for name, allowed in values.items())
    ]


def _write(report: dict[str, Any], output: Path) -> None:
    with atomic_write(output) as file:
        file.write(json.dumps(report, indent=1).encode())
    with atomic_write(output.with_suffix(".md")) as file:
        file.write(markdown(report["rows"]).encode())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", choices=tuple(ROWS))
    for name in FILTERS:
        kind = int if name in ("tasks", "steps", "shot") else str
        choices = {"method": METHODS, "adapted": ("all", "head"), "precision": PRECISIONS}
        parser.add_argument(f"--{name}", nargs="+", type=kind, choices=choices.get(name))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=0, help="start no row after; 0: no limit")
    parser.add_argument("--row_seconds", type=float, default=Effort.row_seconds)
    parser.add_argument("--repeats", type=int, default=Effort.repeats)
    parser.add_argument("--check_tasks", type=int, default=Effort.check_tasks)
    parser.add_argument("--peer_tasks", type=int, default=0, help="time peers on so many; 0: all")
    parser.add_argument("--no_peers", action="store_true")
    parser.add_argument("--chunk", type=int, default=0, help="tasks at a time of ours; 0: measured")
    parser.add_argument("--graph", choices=get_args(GraphMode), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/speed.json"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
