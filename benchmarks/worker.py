"""Processes that measure: an allocator's settings hold for a process, and a crash ends one."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
from contest import Contest
from jax_contest import JaxContest
from machine import limit_memory

from fewshot_blo.machine.allocator import keep_freed_memory

Allocator = Literal["kept", "default"]


class MeasurementError(Exception):
    """A measurement that could not be made, with the reason."""


class Worker:
    """A process with one allocator setting and a contest in it.

    Interrupts are for the process that asks, which ends this one.

    Args:
        device: of the contest.
        allocator: "kept" keeps freed host memory, as this project's command line does; "default"
            is what users of other libraries have.
        settings: of the contest.
        jax: a contest of JAX, not of PyTorch.
    """

    def __init__(
        self, device: str, allocator: Allocator, settings: dict[str, Any], *, jax: bool
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, device, allocator, settings, jax)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        # The process inherits the mask, and an interrupt meanwhile is not lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.is_alive()

    def ask(self, request: str, *arguments: object, deadline: float) -> Any:
        """The result of a method of the contest.

        Args:
            request: the method.
            arguments: of the method.
            deadline: on ``time.monotonic``'s clock; a worker that is late is ended.

        Raises:
            MeasurementError: if the method raised, the process died or was late.
        """
        try:
            self._connection.send((request, arguments))
            if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                self.stop()
                raise MeasurementError(f"{request}: out of time")
            succeeded, result = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join()
            code = self._process.exitcode
            raise MeasurementError(f"{request}: the process ended with code {code}") from error
        if not succeeded:
            raise MeasurementError(f"{request}: {result}")
        return result

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def _serve(
    connection: Connection, device: str, allocator: Allocator, settings: dict[str, Any], jax: bool
) -> None:
    if allocator == "kept" and not keep_freed_memory():
        print("this C library has no setting to keep freed memory", file=sys.stderr)
    if device == "cpu":
        limit_memory()
    warnings.filterwarnings("ignore", module="higher|learn2learn|gym")
    kind = JaxContest if jax else Contest
    contest = kind(torch.device(device), **settings)
    while True:
        try:
            request, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = True, getattr(contest, request)(*arguments)
        except Exception as error:  # Whatever it is, the row says so and the next one goes on.
            text = " ".join(str(error).split())[:300]
            answer = False, f"{type(error).__name__}: {text}"
        connection.send(answer)
