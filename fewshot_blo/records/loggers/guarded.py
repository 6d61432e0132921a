"""``Guarded``: the loggers of a run, none of which can end it or hold it up."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Sequence
from queue import SimpleQueue

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.loggers.logger import LoggedRun, Logger, Record

_START_SECONDS, _CLOSE_SECONDS = 300.0, 120.0
_SILENT_SECONDS = 5.0


class Guarded:
    """Calls the loggers of a run, each in a thread of its own.

    A record is passed on without waiting, so that a logger whose server does not answer does not
    hold up the run. One that raises is left out from then on, with one warning; so is one that has
    not started within 5 minutes, or has not written all and closed within 2 minutes of the end.

    Args:
        loggers: the loggers, not started yet.
        run: what they are told of the run.

    Raises:
        ConfigurationError: if one raises it when it is started; the others are closed then.
    """

    def __init__(self, loggers: Sequence[Logger], run: LoggedRun) -> None:
        self._calls = [_Calls(logger, run) for logger in loggers]
        try:
            for calls in tuple(self._calls):
                if not calls.started.wait(_START_SECONDS):
                    self._leave_out(calls, f"it has not started within {_START_SECONDS:.0f} s")
                elif isinstance(calls.error, ConfigurationError):
                    self._calls.remove(calls)
                    raise calls.error
                self._leave_out_failed(calls)
        except ConfigurationError:
            self.close()
            raise

    def write(self, record: Record) -> None:
        """Passes a record on to all of them."""
        for calls in tuple(self._calls):
            self._leave_out_failed(calls)
            calls.records.put(dict(record))

    def close(self) -> None:
        """Closes all of them; none is called again."""
        for calls in self._calls:
            calls.records.put(None)
        for calls in tuple(self._calls):
            calls.thread.join(_SILENT_SECONDS)
            if calls.thread.is_alive() and sys.stderr is not None:
                print(
                    f"the run is saved; waiting up to {_CLOSE_SECONDS:.0f} s for the logger "
                    f"{type(calls.logger).__name__} to end (Ctrl-C does not wait)",
                    file=sys.stderr,
                    flush=True,
                )
            calls.thread.join(_CLOSE_SECONDS - _SILENT_SECONDS)
            if calls.thread.is_alive():
                why = f"it has not ended {calls.doing} within {_CLOSE_SECONDS:.0f} s"
                self._leave_out(calls, why)
            self._leave_out_failed(calls)
        self._calls.clear()

    def _leave_out_failed(self, calls: _Calls) -> None:
        error = calls.error
        if error is not None and calls in self._calls:
            self._leave_out(calls, f"{type(error).__name__} in {calls.doing}: {error}")

    def _leave_out(self, calls: _Calls, why: str) -> None:
        self._calls.remove(calls)
        calls.records.put(None)  # Should it answer later, it closes.
        warnings.warn(
            f"the logger {type(calls.logger).__name__} failed ({' '.join(why.split())}): the run "
            "goes on without it; log.jsonl has all records, and a resumed run gives it those that "
            "it lacks",
            stacklevel=4,
        )


class _Calls:
    """The calls of one logger, in a thread that does not keep the process alive.

    Attributes:
        records: what to write; None to close.
        started: set when ``start`` has returned or raised.
        doing: the method that is called, or was called last.
        error: what it raised, after which there are no more calls.
    """

    def __init__(self, logger: Logger, run: LoggedRun) -> None:
        self.logger, self._run = logger, run
        self.records: SimpleQueue[Record | None] = SimpleQueue()
        self.started = threading.Event()
        self.doing = "start"
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._call_all, name="logger", daemon=True)
        self.thread.start()

    def _call_all(self) -> None:
        try:
            self.logger.start(self._run)
            self.started.set()
            self.doing = "write"
            while (record := self.records.get()) is not None:
                self.logger.write(record)
            self.doing = "close"
            self.logger.close()
        except BaseException as error:  # Whatever a server or a user's class raises.
            self.error = error
        finally:
            self.started.set()
