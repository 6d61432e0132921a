"""Reads MNIST and splits its training images into the parts that the studies need."""

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
    """MNIST in parts.

    Attributes:
        parts: disjoint parts of the training images in random order.
        test: all test images.
    """

    parts: Sequence[Labelled]
    test: Labelled


def read_digits(root: str, sizes: Sequence[int], seed: int) -> Digits:
    """Reads MNIST and splits its training images at random.

    Args:
        root: folder of MNIST.
        sizes: number of images in each part.
        seed: seed of the split.

    Raises:
        ConfigurationError: if the parts are empty or need too many images, or root is empty.
        DataError: if the folder does not hold MNIST.
    """
    train, test = _read(root)
    if min(sizes) < 1 or sum(sizes) > len(train):
        raise ConfigurationError(
            f"the parts have {', '.join(map(str, sizes))} images: each must have at least 1, and "
            f"all together at most {len(train)}, the number of training images"
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    parts = torch.split(order[: sum(sizes)], list(sizes))
    every = torch.arange(len(test))
    return Digits([_labelled(train, rows) for rows in parts], _labelled(test, every))


def read_long_tail(root: str, counts: Sequence[Sequence[int]], seed: int) -> Digits:
    """Reads MNIST and draws parts with given numbers of images of each digit.

    Args:
        root: folder of MNIST.
        counts: of each part, the number of images of each of the ten digits.
        seed: seed of the draw.

    Raises:
        ConfigurationError: if there are too few images of a digit, or root is empty.
        DataError: if the folder does not hold MNIST.
    """
    train, test = _read(root)
    parts: list[list[Tensor]] = [[] for _ in counts]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    for digit, wanted in enumerate(zip(*counts, strict=True)):
        rows = order[train.labels[order] == digit]
        if sum(wanted) > len(rows):
            raise ConfigurationError(
                f"the parts need {sum(wanted)} images of the digit {digit}: there are {len(rows)}"
            )
        drawn = torch.split(rows[: sum(wanted)], list(wanted))
        for part, own in zip(parts, drawn, strict=True):
            part.append(own)
    every = torch.arange(len(test))
    return Digits([_labelled(train, torch.cat(rows)) for rows in parts], _labelled(test, every))


def _read(root: str) -> tuple[ClassDataset, ClassDataset]:
    """Training and test images."""
    if not root:
        raise ConfigurationError("root is empty: this study needs the folder of MNIST, so set root")
    train, test = mnist.load(root)
    return train, test


def _labelled(dataset: ClassDataset, rows: Tensor) -> Labelled:
    return Labelled(dataset.images[rows].float() / 255, dataset.labels[rows])


def seed_of(*numbers: int) -> int:
    """A 32-bit seed from a hash of several numbers.

    PyTorch's CPU generator uses only the lower 32 bits of a seed.
    """
    (seed,) = np.random.SeedSequence(numbers).generate_state(1).tolist()
    return int(seed)


def batches(count: int, size: int, seed: int) -> Callable[[int], Tensor]:
    """A pure function from the number of a step to the rows of its mini-batch.

    Args:
        count: number of rows of the data.
        size: rows per mini-batch; 0 or at least ``count`` for all rows.
        seed: seed of the draws.
    """
    everything = torch.arange(count)

    def rows(step: int) -> Tensor:
        if not 0 < size < count:
            return everything
        generator = torch.Generator().manual_seed(seed_of(seed, step))
        return torch.randperm(count, generator=generator)[:size]

    return rows
