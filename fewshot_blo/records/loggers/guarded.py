"""``Guarded``: the loggers of a run, of which one that fails is left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.loggers.logger import LoggedRun, Logger, Record


class Guarded:
    """Calls the loggers of a run. One that raises is left out from then on, with one warning.

    Args:
        loggers: the loggers, not started yet.
        run: what they are told of the run.

    Raises:
        ConfigurationError: if one raises it when it is started.
    """

    def __init__(self, loggers: Sequence[Logger], run: LoggedRun) -> None:
        self._loggers = list(loggers)
        self._each("start", lambda logger: logger.start(run))

    def write(self, record: Record) -> None:
        """Gives all of them a record."""
        self._each("write", lambda logger: logger.write(record))

    def close(self) -> None:
        """Closes all of them; none is called again."""
        self._each("close", lambda logger: logger.close())
        self._loggers.clear()

    def _each(self, what: str, call: Callable[[Logger], None]) -> None:
        for logger in tuple(self._loggers):
            try:
                call(logger)
            except ConfigurationError:
                if what == "start":
                    raise
                self._leave_out(logger, what, "its settings do not suit")
            except Exception as error:  # Whatever a server or a user's class raises.
                self._leave_out(logger, what, f"{type(error).__name__}: {error}")

    def _leave_out(self, logger: Logger, what: str, why: str) -> None:
        self._loggers = [other for other in self._loggers if other is not logger]
        warnings.warn(
            f"the logger {type(logger).__name__} failed in {what} ({' '.join(why.split())}): the "
            "run goes on without it; log.jsonl has all records",
            stacklevel=4,
        )
