"""``interrupts``: Ctrl-C, SIGTERM and SIGHUP stop a long run between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def interrupts(say: Callable[[str], None], *, saves: bool) -> Iterator[threading.Event]:
    """An event that a signal sets; a second one raises ``KeyboardInterrupt``.

    The signals are Ctrl-C (SIGINT), SIGTERM, and SIGHUP of a terminal that is closed or whose
    connection is lost, except under ``nohup``, which ignores it. A second SIGHUP is ignored:
    terminals and shells send it more than once.

    Outside of the main thread, where Python cannot handle signals, the event is never set.

    Args:
        say: called with a line that the current step will be finished.
        saves: whether the run is saved then, to say so.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        del frame
        if stop.is_set():
            if number == signal.SIGHUP:
                return
            raise KeyboardInterrupt
        stop.set()
        then = "saving" if saves else "returning; without a folder nothing is saved"
        with suppress(OSError):  # Of a terminal that is gone.
            say(f"{signal.Signals(number).name}: finishing this step, then {then}")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
