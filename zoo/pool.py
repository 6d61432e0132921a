"""Computes rows in separate processes, so that a hang or a crash affects one row only."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

from zoo.compare import Row, compare
from zoo.families import listed, module_of
from zoo.network import Network

_START_SECONDS = 120


def _serve(connection: Connection, module: str) -> None:
    torch.set_num_threads(1)
    members = {network.name: network for network in listed(module)}
    connection.send("ready")
    while True:
        connection.send(compare(members[connection.recv()]))


class _Worker:
    """A process that compares the networks that one module lists, one after another."""

    def __init__(self, module_of: Callable[[str], str]) -> None:
        self.module_of, self.module = module_of, ""
        self.process: SpawnProcess | None = None

    def row(self, network: Network) -> Row:
        """The network's row; its verdict is CRASH if the process dies or takes too long."""
        try:
            module = self.module_of(network.family)
            if self.process is None or self.module != module:
                self._start(module)
            self.connection.send(network.name)
            if self.connection.poll(network.seconds):
                row: Row = self.connection.recv()
                return row
            reason = f"no result after {network.seconds:g} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            reason = "the process died, possibly because memory ran out"
        self.stop()
        return Row(network.family, network.name, "CRASH", remarks=(reason,))

    def _start(self, module: str) -> None:
        self.stop()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, module), daemon=True)
        self.process.start()
        theirs.close()
        self.module = module
        if not self.connection.poll(_START_SECONDS):
            raise EOFError
        self.connection.recv()

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


def run(
    networks: Sequence[Network],
    workers: int,
    report: Callable[[Row], None],
    module_of: Callable[[str], str] = module_of,
) -> list[Row]:
    """Computes the rows of all networks, in their order.

    Args:
        networks: the networks.
        workers: number of processes.
        report: called with each row once it is done.
        module_of: returns the name of the module that lists a family.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(networks)):
        waiting.put(index)
    rows: dict[int, Row] = {}

    def work() -> None:
        worker = _Worker(module_of)
        while True:
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                worker.stop()
                return
            rows[index] = worker.row(networks[index])
            report(rows[index])

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [rows[index] for index in range(len(networks))]
