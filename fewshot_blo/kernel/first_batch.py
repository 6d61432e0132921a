"""The choice of a backend at the first batch, once for each order of derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fewshot_blo.kernel.backend import BackendChoice, Choice
from fewshot_blo.kernel.proof import Order, Sample


class FirstBatch:
    """Chooses the backend of a network when its first batch is known.

    Args:
        prove: compare the kernel with the user's module.
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
            wanted: the one in use, or "auto".
            choice: of the network.
            sample: where it is compared and timed.
            derivatives: that are needed.

        Raises:
            ConfigurationError: as ``Choice``.
        """
        proved = not self._prove or bool({derivatives, "second"} & self._proved)
        if wanted != "auto" and proved:
            return wanted
        found = replace(choice, prove=not proved)(wanted, sample())
        self._proved.add(derivatives)
        return found
