"""``GroupedDataset``: examples with targets, in groups of which each is a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewshot_blo.records.checked import checked
from fewshot_blo.records.shapes import kind
from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.errors import DataError


@checked
@dataclass(frozen=True)
class GroupedDataset:
    """Examples of named groups, such as the pupils of schools, each with its own target.

    Attributes:
        examples: inputs by group: the groups are the classes of this data set.
        targets: ``[M, ...]``, floating-point, or int64 labels ``[M]``, indices into ``categories``.
        categories: names of the labels; empty for floating-point targets.
        feature_names: names of the numbers of an input, if they have any.

    Raises:
        DataError: if the targets do not match the examples or the categories.
    """

    examples: ClassDataset
    targets: Tensor
    categories: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.targets.shape[:1] != self.examples.labels.shape:
            raise DataError(
                f"{len(self.examples)} examples have targets of shape {list(self.targets.shape)}: "
                "there must be one target each"
            )
        if not self.categories:
            if not self.targets.is_floating_point():
                raise DataError(
                    f"targets are {self.targets.dtype} and have no categories: give "
                    "floating-point targets, or name the categories of int64 labels"
                )
            return
        if self.targets.dtype != torch.int64 or self.targets.ndim != 1:
            raise DataError(
                f"targets are {self.targets.dtype} of shape {list(self.targets.shape)}: labels of "
                f"{len(self.categories)} categories must be int64 of shape [examples]"
            )
        low, high = (int(end) for end in torch.aminmax(self.targets))
        if low < 0 or high >= len(self.categories):
            raise DataError(
                f"labels run from {low} to {high}: with {len(self.categories)} categories they "
                f"must be in [0, {len(self.categories)})"
            )

    def __repr__(self) -> str:
        return f"GroupedDataset({self.describe()})"

    def describe(self) -> str:
        """Text for tables: groups, examples and targets."""
        shape = list(self.targets.shape[1:])
        labels = f"{len(self.categories)} categories" if self.categories else f"targets {shape}"
        count, _, examples = self.examples.describe().partition(", ")
        groups = count.replace("classes", "groups").replace("class", "group")
        return f"{groups}, {examples}, {labels} {kind(self.targets)}"

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups."""
        return self.examples.class_names

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels, which all tasks share; empty for floating-point targets."""
        return self.categories

    @property
    def shape(self) -> torch.Size:
        """Shape of one example."""
        return self.examples.shape

    @property
    def outputs(self) -> int:
        """Number of categories, or of entries of a target."""
        return len(self.categories) or self.targets[0].numel()

    @property
    def counts(self) -> Tensor:
        """Number of examples of each group, ``[groups]``."""
        return self.examples.counts

    def select(self, groups: Sequence[int]) -> GroupedDataset:
        """The groups at these positions, in this order.

        Raises:
            DataError: if no group is selected.
        """
        beside = ClassDataset({"targets": self.targets}, self.examples.labels, self.group_names)
        chosen = beside.select(groups).inputs
        assert not isinstance(chosen, Tensor)
        examples, targets = self.examples.select(groups), chosen["targets"]
        return GroupedDataset(examples, targets, self.categories, self.feature_names)


@checked
@dataclass(frozen=True)
class GroupSplits:
    """Groups for training, validation and test, pairwise disjoint.

    Attributes:
        train, validation, test: the groups.
        notes: sentences on what was filled in or left out when they were read.
    """

    train: GroupedDataset
    validation: GroupedDataset
    test: GroupedDataset
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def __iter__(self) -> Iterator[tuple[str, GroupedDataset]]:
        yield "train", self.train
        yield "validation", self.validation
        yield "test", self.test

    def __repr__(self) -> str:
        parts = (f"{name}: {split.describe()}" for name, split in self)
        return "\n  ".join(["GroupSplits", *parts, *self.notes])
