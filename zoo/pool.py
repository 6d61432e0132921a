"""Rows computed in processes of their own, so that a hang or a crash costs one row."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

from zoo.compare import Row, compare
from zoo.network import Network

_START_SECONDS = 120


def _serve(connection: Connection, family: str) -> None:
    from zoo.families import networks

    torch.set_num_threads(1)
    members = {network.name: network for network in networks(family)}
    connection.send("ready")
    while True:
        connection.send(compare(members[connection.recv()]))


class _Worker:
    """A process that checks networks of one family, one after another."""

    def __init__(self) -> None:
        self.family = ""
        self.process: SpawnProcess | None = None

    def row(self, network: Network) -> Row:
        """The network's row; a crash where the process dies or takes too long."""
        try:
            if self.process is None or self.family != network.family:
                self._start(network.family)
            self.connection.send(network.name)
            if self.connection.poll(network.seconds):
                row: Row = self.connection.recv()
                return row
            reason = f"no result after {network.seconds:g} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            reason = "the process died, as it does where memory runs out"
        self.stop()
        return Row(network.family, network.name, "CRASH", remarks=(reason,))

    def _start(self, family: str) -> None:
        self.stop()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, family), daemon=True)
        self.process.start()
        theirs.close()
        self.family = family
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


def run(networks: Sequence[Network], workers: int, report: Callable[[Row], None]) -> list[Row]:
    """Rows in the order of the networks; ``report`` is called with each as it is done."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(networks)):
        waiting.put(index)
    rows: dict[int, Row] = {}

    def work() -> None:
        worker = _Worker()
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
