"""Chooses a backend at the first batch, once for each order of derivatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.backend import BackendChoice, Choice, make_forward
from fewshot_blo.kernel.forward import Backend
from fewshot_blo.kernel.precision import product_precision
from fewshot_blo.kernel.proof import Order, Sample
from fewshot_blo.kernel.row_check import MIXED_ROWS, rows_mix


class FirstBatch:
    """Chooses the backend of a network when its first batch is known.

    Args:
        prove: whether to compare the kernel with the user's module.

    Attributes:
        rows_mix: whether outputs of a row were seen to depend on the other rows of a batch, other
            than by the statistics of batch norms.
    """

    def __init__(self, prove: bool) -> None:
        self._prove = prove
        self._proved: set[Order] = set()
        self.rows_mix = False

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
        first = sample()
        found = replace(choice, prove=not proved)(wanted, first)
        if not (proved or self.rows_mix):
            self._look_at_rows(choice, found, first)
        self._proved.add(derivatives)
        return found

    def check_rows(self, padded: bool) -> None:
        """Checks that a batch suits the network.

        Args:
            padded: whether some of its tasks are padded.

        Raises:
            ConfigurationError: if so, and the network mixes rows.
        """
        if padded and self.rows_mix:
            raise ConfigurationError(MIXED_ROWS)

    def _look_at_rows(self, choice: Choice, backend: Backend, sample: Sample) -> None:
        own: Backend = "reference" if backend == "reference" else "loop"
        forward = make_forward(choice.original, choice.network, own, "float32")
        devices = [sample.device] if sample.device.type == "cuda" else []
        with torch.random.fork_rng(devices), product_precision("float32", sample.device):
            self.rows_mix = rows_mix(forward, sample)
        if self.rows_mix:
            warnings.warn(
                f"{type(choice.original).__name__} mixes the rows of a batch outside of PyTorch's "
                "batch norm layers: the prediction for a query depends on the other queries "
                "(transductive) in every norm mode",
                stacklevel=4,
            )
