"""Contenders written in PyTorch in one process: built, compared, timed and weighed."""

from __future__ import annotations

import gc
from typing import Any

import ours
import peers
import roofline
import torch
from agreement import Arrays, relative_difference
from grid import Cell
from machine import describe
from ours import Ours, Step
from timing import seconds

from fewshot_blo.kernel.graph import GraphMode
from fewshot_blo.machine.memory import peak_bytes

OURS = "ours"
WARM_UPS = 3
"""Of ours: the second step of a shape may record kernels, which the third then replays."""


class Contest:
    """What a measuring process holds, and all that it can be asked to do.

    Args:
        device: of all contenders.
        seed: of weights and tasks.
        chunk: tasks at a time of ours; 0 as training chooses.
        graph: whether our kernels are recorded and replayed.
    """

    def __init__(self, device: torch.device, seed: int, chunk: int, graph: GraphMode) -> None:
        self.device, self.seed, self.chunk, self.graph = device, seed, chunk, graph
        self.steps: dict[str, Step] = {}
        self.mine: Ours | None = None

    def describe(self) -> dict[str, object]:
        """The machine and the versions."""
        return describe(self.device)

    def rates(self, cell: Cell) -> dict[str, float]:
        """Measured ceilings of the device in the cell's precision."""
        return roofline.measure_rates(cell, self.device)

    def missing(self, name: str) -> str | None:
        """Why a contender cannot run here; None if it can."""
        try:
            peers.import_peer(name)
        except ImportError as error:
            return str(error)
        return None

    def reference(self, cell: Cell) -> Arrays:
        """Our float64 gradient; on a GPU that of a replay."""
        return self._gradient(OURS, cell, torch.float64)

    def compare(self, name: str, cell: Cell, reference: Arrays) -> dict[str, float]:
        """Relative difference from our float64 gradient.

        Returns:
            ``difference`` of the contender's own gradient in float64, and ``error`` of the one in
            the precision that is timed.
        """
        difference = 0.0
        if name != OURS:
            gradient = self._gradient(name, cell, torch.float64)
            difference = relative_difference(gradient, reference)
        error = relative_difference(self._gradient(name, cell, torch.float32), reference)
        return {"difference": difference, "error": error}

    def _gradient(self, name: str, cell: Cell, dtype: torch.dtype) -> Arrays:
        graph: GraphMode = "off" if self.graph == "off" else "on"
        step = self._build(name, cell, dtype, graph)
        if name == OURS and self.device.type == "cuda":
            for _ in range(WARM_UPS - 1):
                step()
        return {name: value.cpu().numpy() for name, value in step().items()}

    def prepare(self, name: str, cell: Cell) -> dict[str, Any]:
        """Builds a contender and warms it up; on a GPU, also weighs it.

        Returns:
            Choices that ours made; on a GPU also ``peak_bytes`` of tensors beyond weights and
            tasks, and ``peak_reserved_bytes`` that the allocator held for them.
        """
        self._clean()
        step = self._build(name, cell, torch.float32, self.graph)
        allocated = reserved = 0
        if self.device.type == "cuda":
            allocated = torch.cuda.memory_allocated(self.device)
            reserved = torch.cuda.memory_reserved(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(WARM_UPS if name == OURS else 1):
            step()
        self.steps[name] = step
        found: dict[str, Any] = self.mine.choices() if name == OURS and self.mine else {}
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            found["peak_bytes"] = peak - allocated
            peak = torch.cuda.max_memory_reserved(self.device)
            found["peak_reserved_bytes"] = peak - reserved
        return found

    def weigh(self, name: str) -> int:
        """Bytes of tensors that one step holds at one time."""
        return peak_bytes(self.steps[name])

    def time(self, name: str) -> float:
        """Seconds of one step."""
        return seconds(self.steps[name], self.device)

    def release(self) -> None:
        """Forgets the row."""
        self.steps.clear()
        self.mine = None
        self._clean()

    def _build(self, name: str, cell: Cell, dtype: torch.dtype, graph: GraphMode) -> Step:
        weights = ours.make_weights(cell, self.seed)
        batch = cell.batch(self.seed, self.device, dtype)
        if name != OURS:
            return peers.build(name, cell, weights, batch)
        self.mine = ours.build(cell, weights, batch, chunk=self.chunk, graph=graph)
        return self.mine.step

    def _clean(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
