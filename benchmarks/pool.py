"""The measuring processes of a run, started as they are needed."""

from __future__ import annotations

import time
from typing import Any

import peers
from contest import OURS
from grid import Cell
from worker import Allocator, MeasurementError, Worker

ANSWER_SECONDS = 120.0
"""For what every process can do: import its libraries, describe the machine, forget a row."""


class Pool:
    """Ours has a process, the peers that are written in PyTorch share one, each of JAX has one.

    So one that is late or fails takes no other's figure with it. On the host, freed memory kept or
    returned makes a difference: peers have a process for each, and each row has new ones. On a GPU
    the processes measure all rows, until they fail.

    Args:
        device: of all contenders.
        settings: of ``Contest``.
    """

    def __init__(self, device: str, settings: dict[str, Any]) -> None:
        self.device, self._settings = device, settings
        self._workers: dict[tuple[str, Allocator], Worker] = {}
        self._rates: dict[str, dict[str, float] | None] = {}

    def allocators(self, name: str) -> tuple[Allocator, ...]:
        """Settings with which a contender is timed, that of its comparison first."""
        if name == OURS or self.device != "cpu":
            return ("kept",)
        # A run of JAX's is long on the host, and the allocator's share of it within the noise.
        return ("default",) if name in peers.JAX else ("kept", "default")

    def worker(self, name: str, allocator: Allocator) -> Worker:
        """The process of a contender, started if it does not run."""
        side = name if name == OURS or name in peers.JAX else "PyTorch"
        key = side, allocator
        if key not in self._workers or not self._workers[key].alive:
            self._workers[key] = Worker(
                self.device, allocator, self._settings, jax=name in peers.JAX
            )
        return self._workers[key]

    def new_row(self) -> None:
        """Lets go of what the processes hold."""
        if self.device == "cpu":
            self.stop()
        for worker in self._workers.values():
            if worker.alive:
                worker.ask("release", deadline=time.monotonic() + ANSWER_SECONDS)

    def describe(self) -> dict[str, object]:
        """Machine and versions, as our process sees them."""
        found: dict[str, object] = self._ask(OURS, "describe")
        return found

    def missing(self) -> dict[str, str]:
        """Peers that cannot run here, and why."""
        found = {name: self._ask(name, "missing", name) for name in peers.PEERS}
        self.stop()
        return {name: reason for name, reason in found.items() if reason is not None}

    def rates(self, cell: Cell) -> dict[str, float] | None:
        """Ceilings of the device, measured once a precision; None where that fails."""
        if cell.precision not in self._rates:
            try:
                self._rates[cell.precision] = self._ask(OURS, "rates", cell)
            except MeasurementError:
                self._rates[cell.precision] = None
        return self._rates[cell.precision]

    def stop(self) -> None:
        """Ends the processes."""
        for worker in self._workers.values():
            worker.stop()
        self._workers.clear()

    def _ask(self, name: str, request: str, *arguments: object) -> Any:
        worker = self.worker(name, self.allocators(name)[0])
        return worker.ask(request, *arguments, deadline=time.monotonic() + ANSWER_SECONDS)
