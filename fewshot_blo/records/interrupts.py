"""``interrupts``: Ctrl-C, SIGTERM and SIGHUP stop a long run between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_outer: threading.Event | None = None


@contextmanager
def interrupts(say: Callable[[str], None], *, saves: bool) -> Iterator[threading.Event]:
    """An event that a signal sets; a second Ctrl-C raises ``KeyboardInterrupt``.

    The signals are those of ``handled``. A second SIGTERM or SIGHUP is ignored: batch systems,
    ``torchrun`` and terminals send them more than once. Inside of another ``interrupts``, the event
    is that of the outer one.

    Outside of the main thread, where Python cannot handle signals, the event is never set.

    Args:
        say: called with a line that the current step will be finished.
        saves: whether the run is saved then, to say so.
    """
    global _outer
    if threading.current_thread() is not threading.main_thread():
        yield threading.Event()
        return
    if _outer is not None:
        yield _outer
        return
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        del frame
        if stop.is_set():
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        stop.set()
        then = "saving" if saves else "returning; without a folder nothing is saved"
        with suppress(OSError):  # Of a terminal that is gone.
            say(f"{signal.Signals(number).name}: finishing this step, then {then}")

    _outer = stop
    try:
        with handled(handle):
            yield stop
    finally:
        _outer = None


@contextmanager
def handled(handle: Callable[[int, object], None]) -> Iterator[None]:
    """Inside, ``handle(number, frame)`` is called for signals that are to end a process.

    They are Ctrl-C (SIGINT), SIGTERM, and SIGHUP of a terminal that is closed or whose connection
    is lost, except under ``nohup``, which ignores it. Outside of the main thread, where Python
    cannot handle signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
