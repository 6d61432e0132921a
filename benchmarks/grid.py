"""The configurations that are measured: cells of a grid, and named lists of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fewshot_blo.kernel.precision import Precision
from fewshot_blo.networks import Conv4, ResNet12
from fewshot_blo.tasks import TaskBatch

Method = Literal["second", "first", "implicit", "penalty"]
Adapted = Literal["all", "head"]

METHODS: tuple[Method, ...] = ("second", "first", "implicit", "penalty")
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Cell:
    """One configuration.

    Attributes:
        network: "conv4-<filters>-<image size>" or "resnet12-<image size>"; images of 28×28 have
            one channel, others three.
        method: "second" and "first" order unrolling, "implicit" with 5 conjugate gradients, or
            "penalty".
        adapted: in the inner problem, all parameters or the linear head on a shared encoder.
        tasks: T.
        steps: inner steps.
        shot, way, query: of each task; queries a class.
        precision: of the timed run. The gradients are compared in float64.
    """

    network: str = "conv4-64-28"
    method: Method = "second"
    adapted: Adapted = "all"
    tasks: int = 8
    steps: int = 5
    shot: int = 1
    precision: Precision = "float32"
    way: int = 5
    query: int = 15

    @property
    def size(self) -> int:
        """Side of the images."""
        return int(self.network.rsplit("-", 1)[1])

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return 1 if self.size == 28 else 3

    @property
    def name(self) -> str:
        """All settings on one line."""
        return (
            f"{self.network} {self.method} {self.adapted} T={self.tasks} steps={self.steps} "
            f"shot={self.shot} {self.precision}"
        )

    def encoder(self) -> tuple[nn.Module, int]:
        """The network without a head, and the number of its features.

        Raises:
            ValueError: if the network's name is none of those above.
        """
        if match := re.fullmatch(r"conv4-(\d+)-(\d+)", self.network):
            conv4 = Conv4(channels=self.channels, hidden=int(match[1]))
            return conv4, conv4.features(self.size)
        if re.fullmatch(r"resnet12-\d+", self.network):
            resnet = ResNet12(channels=self.channels)
            return resnet, resnet.features(self.size)
        raise ValueError(
            f"network is '{self.network}': it must be conv4-<filters>-<size> or resnet12-<size>"
        )

    def batch(self, seed: int, device: torch.device, dtype: torch.dtype) -> TaskBatch:
        """T synthetic tasks: classes are noise around a mean image of their own."""
        generator = torch.Generator().manual_seed(seed)
        image = (self.channels, self.size, self.size)
        means = torch.rand(self.tasks, self.way, 1, *image, generator=generator)

        def rows(number: int) -> tuple[Tensor, Tensor]:
            noise = torch.rand(self.tasks, self.way, number, *image, generator=generator)
            labels = torch.arange(self.way).repeat_interleave(number).repeat(self.tasks, 1)
            return (0.5 * (means + noise)).flatten(1, 2), labels

        support, query = rows(self.shot), rows(self.query)
        classes = torch.arange(self.way).repeat(self.tasks, 1)
        return TaskBatch(*support, *query, classes).to(device, dtype)


def cross(base: Cell, **values: Sequence[object]) -> Iterator[Cell]:
    """The base with every combination of the values of some of its fields."""
    for combination in itertools.product(*values.values()):
        yield replace(base, **dict(zip(values, combination, strict=True)))  # type: ignore[arg-type]


def _head(base: Cell) -> list[Cell]:
    """Head-only rows: the penalty method's 20 steps, implicit and unrolling."""
    head = replace(base, adapted="head")
    return [
        replace(head, method="penalty", steps=20),
        replace(head, method="implicit"),
        replace(head, method="second"),
    ]


def _other_methods(base: Cell) -> list[Cell]:
    return [
        replace(base, method="first"),
        replace(base, method="implicit"),
        replace(base, method="penalty", steps=20),
    ]


_SMALL = Cell(tasks=8)
_MINI = Cell("conv4-32-84", tasks=4)
_GPU_SMALL = Cell(tasks=64)
_GPU_MINI = Cell("conv4-32-84", tasks=32)
_GPU_RESNET = Cell("resnet12-84", tasks=8)

ROWS: dict[str, list[Cell]] = {
    "quick": [
        Cell("conv4-8-28", tasks=4, steps=2, query=3),
        *_head(Cell("conv4-8-28", tasks=4, steps=2, query=3)),
    ],
    "cpu": [
        _SMALL,
        _MINI,
        *_head(_SMALL),
        *_head(_MINI),
        replace(_SMALL, steps=50),
        replace(_MINI, steps=50),
        replace(_MINI, network="conv4-64-84"),
        replace(_SMALL, tasks=32),
        *_other_methods(_SMALL),
        replace(_SMALL, steps=1),
        replace(_SMALL, steps=10),
        replace(_SMALL, shot=5),
        replace(_MINI, shot=5),
        *_other_methods(_MINI),
        Cell("resnet12-84", tasks=4, steps=1),
        replace(_SMALL, precision="bfloat16"),
        Cell("resnet12-84", tasks=4),
    ],
    "gpu": [
        _GPU_SMALL,
        _GPU_MINI,
        _GPU_RESNET,
        replace(_GPU_SMALL, tasks=256),
        replace(_GPU_MINI, precision="tf32"),
        replace(_GPU_MINI, precision="bfloat16"),
        replace(_GPU_MINI, tasks=128, precision="bfloat16"),
        replace(_GPU_SMALL, steps=50),
        replace(_GPU_MINI, steps=50),
        *_head(_GPU_SMALL),
        replace(_GPU_RESNET, precision="bfloat16"),
        replace(_GPU_MINI, network="conv4-64-84"),
        replace(_GPU_SMALL, tasks=32),
        replace(_GPU_SMALL, tasks=4),
        replace(_GPU_SMALL, precision="bfloat16"),
        replace(_GPU_SMALL, precision="tf32"),
        *_other_methods(_GPU_SMALL),
        *_head(_GPU_MINI),
        replace(_GPU_MINI, tasks=128),
        replace(_GPU_RESNET, tasks=32, precision="bfloat16"),
        replace(_GPU_SMALL, shot=5),
        replace(_GPU_MINI, shot=5),
        replace(_GPU_SMALL, steps=1),
        replace(_GPU_SMALL, steps=10),
        *_other_methods(_GPU_MINI),
    ],
}
"""Named lists of rows, the most important first."""


def as_data(cell: Cell) -> dict[str, str | int]:
    """The cell as plain data."""
    return asdict(cell)
