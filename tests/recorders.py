"""A recorder of computations that needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map


class Rerun:
    """Records by running the function again on the same inputs, into the same results."""

    device = torch.device("cpu")

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.recorded, self.replayed = error, 0, 0

    def warm_up(self, function: Callable[[], object]) -> None:
        function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        if self.error:
            raise self.error
        results = tree_map(lambda x: torch.full_like(x, torch.nan), function())

        def replay() -> None:
            self.replayed += 1
            tree_map(lambda old, new: old.copy_(new), results, function())

        return results, replay
