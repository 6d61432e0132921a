"""``FunctionSplits``: the functions of a family for training, validation and test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fewshot_blo.tasks.families.family import Family
from fewshot_blo.tasks.families.sampler import Split


@dataclass(frozen=True)
class FunctionSplit:
    """The functions of a family that one split draws.

    Attributes:
        family: the functions.
        name: which stream of tasks.
    """

    family: Family
    name: Split

    class_names: Sequence[str] = ()
    outputs: int = 1

    @property
    def shape(self) -> torch.Size:
        """Shape of one point, ``[D]``."""
        return torch.Size([self.family.inputs])

    def describe(self) -> str:
        """Text for tables: the family."""
        return f"functions: {self.family.describe()}"


@dataclass(frozen=True)
class FunctionSplits:
    """Training, validation and test tasks of a family, from streams of random numbers of their own.

    Attributes:
        family: the functions.
    """

    family: Family
    notes: tuple[str, ...] = ()

    @property
    def train(self) -> FunctionSplit:
        """For training."""
        return FunctionSplit(self.family, "train")

    @property
    def validation(self) -> FunctionSplit:
        """For validation."""
        return FunctionSplit(self.family, "validation")

    @property
    def test(self) -> FunctionSplit:
        """For test."""
        return FunctionSplit(self.family, "test")

    def __iter__(self) -> Iterator[tuple[str, FunctionSplit]]:
        yield "train", self.train
        yield "validation", self.validation
        yield "test", self.test
