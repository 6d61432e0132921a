"""MNIST divided as the studies need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import ClassDataset, mnist


class Labelled(NamedTuple):
    """Images ``[M, 1, 28, 28]`` in [0, 1] and labels ``[M]``."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Digits:
    """Disjoint parts of the training images in random order, and all test images."""

    parts: Sequence[Labelled]
    test: Labelled


def read_digits(root: str, sizes: Sequence[int], seed: int) -> Digits:
    """Parts of so many training images each.

    Args:
        root: folder of MNIST.
        sizes: of the parts.
        seed: of the division.

    Raises:
        ConfigurationError: if there are fewer images, or no folder is given.
        DataError: if MNIST is not there.
    """
    if not root:
        raise ConfigurationError("this study needs the folder of MNIST: set root")
    train, test = mnist.load(root)
    if min(sizes) < 1 or sum(sizes) > len(train):
        raise ConfigurationError(
            f"parts of {', '.join(map(str, sizes))} images: there are {len(train)} to divide"
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    parts = torch.split(order[: sum(sizes)], list(sizes))
    every = torch.arange(len(test))
    return Digits([_labelled(train, rows) for rows in parts], _labelled(test, every))


def _labelled(dataset: ClassDataset, rows: Tensor) -> Labelled:
    return Labelled(dataset.images[rows].float() / 255, dataset.labels[rows])


def seed_of(*numbers: int) -> int:
    """A seed of 32 bits that differs, but for chance, wherever one of these numbers does.

    PyTorch's generator on the host reads no more than the lower 32 bits.
    """
    (seed,) = np.random.SeedSequence(numbers).generate_state(1).tolist()
    return int(seed)


def batches(count: int, size: int, seed: int) -> Callable[[int], Tensor]:
    """Rows of the mini-batch of each step, a pure function of it; all rows where size is 0.

    Args:
        count: rows of the data.
        size: of a mini-batch.
        seed: of the draws.
    """
    everything = torch.arange(count)

    def rows(step: int) -> Tensor:
        if not 0 < size < count:
            return everything
        generator = torch.Generator().manual_seed(seed_of(seed, step))
        return torch.randperm(count, generator=generator)[:size]

    return rows
