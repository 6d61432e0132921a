"""``interrupts``: Ctrl-C and SIGTERM stop a long run between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts(say: Callable[[str], None], *, saves: bool) -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second signal raises ``KeyboardInterrupt``.

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
            raise KeyboardInterrupt
        stop.set()
        then = "saving" if saves else "returning; without a folder nothing is saved"
        say(f"{signal.Signals(number).name}: finishing this step, then {then}")

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
