"""``ClassDataset``: examples grouped by class; ``Splits``: disjoint sets of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewshot_blo.records.checked import checked
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.inputs import (
    Inputs,
    check_input,
    each,
    in_words,
    joined,
    named,
    one_of,
)


@checked
@dataclass(frozen=True)
class ClassDataset:
    """Examples of named classes; those of one class are consecutive.

    Inputs may be anything that a network takes: images, features computed before, token ids, time
    series, or several of them by name.

    Attributes:
        inputs: ``[M, ...]`` on any device, or a mapping of such tensors. uint8 is for images ``[M,
            C, H, W]``, which samplers scale to [0, 1]; other dtypes are taken as they are.
        labels: ``[M]``, int64, indices into ``class_names`` in ascending order.
        class_names: one unique name per class; every class has at least one example.

    Raises:
        DataError: if shapes, dtypes or labels do not match.
    """

    inputs: Inputs
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        what = "images" if self.is_pictures else "examples"
        if not named(self.inputs):
            raise DataError("inputs are an empty mapping: name at least one tensor")
        for name, tensor in named(self.inputs).items():
            check_input(name, tensor)
            if self.labels.shape != tensor.shape[:1]:
                raise DataError(
                    f"{tensor.shape[0]} {what} have labels of shape {list(self.labels.shape)}: "
                    "there must be one label each"
                )
        if self.labels.dtype != torch.int64:
            raise DataError(f"labels are {self.labels.dtype}; they must be int64")
        if (self.labels < 0).any():
            raise DataError(
                f"the smallest label is {int(self.labels.min())}: labels must be at least 0"
            )
        if len(set(self.class_names)) != len(self.class_names):
            twice = sorted({n for n in self.class_names if self.class_names.count(n) > 1})
            raise DataError(f"class names must be unique; these are not: {twice[:5]}")
        if (self.labels[1:] < self.labels[:-1]).any():
            raise DataError(
                "labels must be in ascending order: build the data set with "
                "ClassDataset.from_labels"
            )
        counts = torch.bincount(self.labels, minlength=len(self.class_names))
        if len(counts) != len(self.class_names):
            raise DataError(
                f"the largest label is {int(self.labels.max())} "
                f"but there are {len(self.class_names)} class names: give one name per class"
            )
        if (counts == 0).any():
            empty = self.class_names[int((counts == 0).nonzero()[0])]
            raise DataError(f"class '{empty}' has no {what}: add some, or leave its name out")

    def __repr__(self) -> str:
        return f"ClassDataset({self.describe()})"

    def describe(self) -> str:
        """Text for tables: number of classes and examples, their shape, dtype and device."""
        low, high = int(self.counts.min()), int(self.counts.max())
        count = str(low) if low == high else f"{low} to {high}"
        classes = len(self.class_names)
        return (
            f"{classes} class{'' if classes == 1 else 'es'}, {count} "
            f"{'images' if self.is_pictures else 'examples'} each, {len(self)} in all, "
            f"{in_words(self.inputs, 1)}"
        )

    @property
    def is_pictures(self) -> bool:
        """Whether the inputs are uint8 images ``[M, C, H, W]``."""
        return isinstance(self.inputs, Tensor) and self.inputs.dtype == torch.uint8

    @property
    def images(self) -> Tensor:
        """The images, ``[M, C, H, W]``, uint8.

        Raises:
            DataError: if the examples are not images.
        """
        if not self.is_pictures:
            raise DataError(
                f"images are asked for, and the data set has {self.describe()}: give uint8 images "
                "[images, channels, height, width]"
            )
        return one_of(self.inputs)

    @classmethod
    @checked
    def from_labels(
        cls, inputs: Inputs, labels: Tensor, class_names: Sequence[str]
    ) -> ClassDataset:
        """Builds a data set from examples in any order, sorted stably by label.

        Args:
            inputs: ``[M, ...]``, as in the attributes.
            labels: ``[M]``, indices into ``class_names``.
            class_names: one unique name per class.
        """
        order = torch.argsort(labels, stable=True)
        ordered = each(lambda x: x[order.to(x.device)], inputs)
        return cls(ordered, labels[order].to(torch.int64), tuple(class_names))

    @classmethod
    def from_counts(cls, inputs: Inputs, counts: Mapping[str, int]) -> ClassDataset:
        """Builds a data set from examples in class order and the number of them per class."""
        sizes = torch.tensor(list(counts.values()), dtype=torch.int64)
        labels = torch.arange(len(counts)).repeat_interleave(sizes)
        return cls(inputs, labels.to(one_of(inputs).device), tuple(counts))

    def __len__(self) -> int:
        return one_of(self.inputs).shape[0]

    @property
    def shape(self) -> torch.Size:
        """Shape of one example.

        Raises:
            DataError: if examples are several tensors by name.
        """
        if not isinstance(self.inputs, Tensor):
            raise DataError(
                f"examples are {in_words(self.inputs, 1)}: settings build networks of one tensor, "
                "so build the problem in Python"
            )
        return self.inputs.shape[1:]

    @property
    def outputs(self) -> None:
        """None: the number of outputs is the way of the tasks."""
        return

    @property
    def counts(self) -> Tensor:
        """Number of examples of each class, ``[classes]``."""
        return torch.bincount(self.labels, minlength=len(self.class_names))

    def to(self, device: torch.device | str) -> ClassDataset:
        """The same data set with its tensors on ``device``."""
        moved = each(lambda x: x.to(device), self.inputs)
        return ClassDataset(moved, self.labels.to(device), self.class_names)

    def select(self, classes: Sequence[int]) -> ClassDataset:
        """The classes at these positions, in this order.

        Consecutive classes share memory with this data set; others are copied.

        Raises:
            DataError: if no class is selected.
        """
        if not classes:
            raise DataError("no class is selected: select at least one")
        chosen = torch.tensor(classes)
        counts = self.counts.cpu()
        ends = counts.cumsum(0)
        counts, starts = counts[chosen], (ends - counts)[chosen]
        labels = torch.arange(len(classes)).repeat_interleave(counts)
        if (chosen[1:] - chosen[:-1] == 1).all():
            rows = slice(int(starts[0]), int(starts[0] + counts.sum()))
            inputs = each(lambda x: x[rows], self.inputs)
        else:
            # Row by row of the result: its place in its class, after the class's first row.
            places = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels]
            chosen_rows = starts[labels] + places
            inputs = each(lambda x: x[chosen_rows.to(x.device)], self.inputs)
        return ClassDataset(
            inputs,
            labels.to(self.labels.device),
            tuple(self.class_names[c] for c in classes),
        )

    def with_channels(self, channels: int) -> ClassDataset:
        """Converts the images to grey (1 channel) or RGB (3 channels).

        Grey is repeated, in the same memory; RGB is weighted as in ITU-R 601 and Pillow.

        Raises:
            DataError: for any other conversion, or if the examples are not images.
        """
        own = self.images.shape[1]
        if own == channels:
            return self
        if {own, channels} != {1, 3}:
            raise DataError(
                f"images of {own} channels cannot be converted to {channels}: only grey (1) and "
                "RGB (3) can be converted to each other"
            )
        if own == 1:
            return replace(self, inputs=self.images.expand(-1, 3, -1, -1))
        red, green, blue = torch.split(self.images.to(torch.int32), 1, 1)
        grey = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
        return replace(self, inputs=grey.to(torch.uint8))

    def with_rotations(self) -> ClassDataset:
        """Replaces each class by four, rotated by 0, 90, 180 and 270 degrees.

        The names get the suffixes ``/rot000`` to ``/rot270``, as in the published Omniglot splits.
        """
        turned = [self.images.rot90(k, dims=(2, 3)) for k in range(4)]
        classes = len(self.class_names)
        labels = torch.cat([self.labels + k * classes for k in range(4)])
        names = [f"{name}/rot{90 * k:03d}" for k in range(4) for name in self.class_names]
        return ClassDataset(torch.cat(turned), labels, tuple(names))

    def with_mirror_images(self) -> ClassDataset:
        """Adds each class flipped horizontally as a new class, with the suffix ``/mirror``.

        Meant for classes that a flip changes, such as characters; a symmetric class is duplicated.
        """
        names = (*self.class_names, *(f"{name}/mirror" for name in self.class_names))
        labels = torch.cat([self.labels, self.labels + len(self.class_names)])
        return ClassDataset(torch.cat([self.images, self.images.flip(3)]), labels, names)


@checked
@dataclass(frozen=True)
class Splits:
    """Meta-training, meta-validation and meta-test classes of one data set, pairwise disjoint.

    Attributes:
        train, validation, test: the classes.
        notes: sentences on what was passed over when they were read.

    Raises:
        DataError: if a class name occurs in two splits.
    """

    train: ClassDataset
    validation: ClassDataset
    test: ClassDataset
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for split, dataset in self:
            for name in dataset.class_names:
                if name in seen:
                    raise DataError(
                        f"class '{name}' is in both {seen[name]} and {split}: splits must be "
                        "disjoint"
                    )
                seen[name] = split

    def __iter__(self) -> Iterator[tuple[str, ClassDataset]]:
        yield "train", self.train
        yield "validation", self.validation
        yield "test", self.test

    def __repr__(self) -> str:
        return "\n  ".join(["Splits", *(f"{name}: {split.describe()}" for name, split in self)])

    @classmethod
    def consecutive(
        cls, dataset: ClassDataset, numbers: Sequence[int], notes: tuple[str, ...] = ()
    ) -> Splits:
        """Splits that share memory with a data set, whose classes they divide in its order.

        Args:
            dataset: all classes: first those of training, then of validation, then of test.
            numbers: numbers of classes of the three splits.
            notes: as in the attributes.
        """
        first, second = numbers[0], numbers[0] + numbers[1]
        every = range(len(dataset.class_names))
        parts = (every[:first], every[first:second], every[second:])
        return cls(*(dataset.select(part) for part in parts), notes=notes)

    def joined(self) -> ClassDataset:
        """All classes in one data set: training, validation, test."""
        parts = [dataset for _, dataset in self]
        counts = {
            n: c for d in parts for n, c in zip(d.class_names, d.counts.tolist(), strict=True)
        }
        return ClassDataset.from_counts(joined(*(d.inputs for d in parts)), counts)
