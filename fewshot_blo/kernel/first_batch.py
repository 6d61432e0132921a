"""Chooses a backend at the first batch, once for each order of derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fewshot_blo.kernel.backend import BackendChoice, Choice
from fewshot_blo.kernel.proof import Order, Sample


class FirstBatch:
    """Chooses the backend of a network when its first batch is known.

    Args:
        prove: whether to compare the kernel with the user's module.
    """

    def __init__(self, prove: bool) -> None:
        self._prove = prove
        self._proved: set[Order] = set()

    def __call__(
        self,
        wanted: BackendChoice,
        choice: Choice,
        sample: Callable[[], Sample],
        derivatives: Order,
    ) -> BackendChoice:
        """The backend to use from now on.

        Args:
            wanted: the backend in use, or "auto".
            choice: compares and times the network's backends.
            sample: returns the parameters and inputs to do that on.
            derivatives: highest order of derivatives that is needed.

        Raises:
            ConfigurationError: as ``Choice``.
        """
        proved = not self._prove or bool({derivatives, "second"} & self._proved)
        if wanted != "auto" and proved:
            return wanted
        found = replace(choice, prove=not proved)(wanted, sample())
        self._proved.add(derivatives)
        return found
