"""``EpisodicSampler``: few-shot tasks as a pure function of a seed and an index."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, Way
from fewshot_blo.records.shapes import kind_of
from fewshot_blo.tasks.augmentation import Augmentation, draw
from fewshot_blo.tasks.batch import TaskBatch, send
from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.inputs import Inputs, as_inputs, each, one_of
from fewshot_blo.tasks.source import TaskSource

Range = tuple[int, int]


@checked
class EpisodicSampler(TaskSource):
    """Draws N-way K-shot tasks with Q queries per class from a data set.

    Task ``i`` depends only on ``(seed, i)``, not on batch size, device, number of processes or
    earlier draws. Batch ``b`` holds tasks ``b*T`` to ``b*T + T - 1``. The classes of a task are
    distinct and so are its images: support and query sets never overlap.

    Args:
        dataset: classes to draw from; images are gathered on its device.
        way: N, number of classes in a task, or an inclusive range to draw it from for each task.
        shot: K, number of support images per class, or a range; equal for all classes of a task.
        query: Q, number of query images per class, or a range; equal for all classes of a task.
        tasks: T, number of tasks in a batch.
        seed: seed of the tasks, at least 0.
        device: device of the batches; the data set's device by default.
        dtype: floating-point dtype of the images, which are scaled to [0, 1].
        augment: random augmentation of each image, for training; it also depends only on
            ``(seed, i)``.

    Raises:
        DataError: if a size is not positive, the seed is negative, ``dtype`` is not floating-point,
            the images do not suit ``augment``, or the data set has too few classes or images.
    """

    def __init__(
        self,
        dataset: ClassDataset,
        *,
        way: Way | tuple[Way, Way],
        shot: Counting | tuple[Counting, Counting],
        query: Counting | tuple[Counting, Counting],
        tasks: Counting,
        seed: Natural = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        augment: Augmentation | None = None,
    ) -> None:
        self.dataset = dataset
        self.way, self.shot, self.query = (
            _range("way", way),
            _range("shot", shot),
            _range("query", query),
        )
        if not dtype.is_floating_point:
            raise DataError(f"dtype is {dtype}: it must be a floating-point dtype")
        self.tasks = tasks
        self.seed = seed
        self.class_names = dataset.class_names
        self.device = one_of(dataset.inputs).device if device is None else _device(device)
        self.dtype = dtype
        self.augment = augment if augment is not None and augment.active else None
        if self.augment is not None:
            self.augment.check(dataset.images.shape[1:])
        self._counts: NDArray[np.int64] = dataset.counts.cpu().numpy()
        self._starts: NDArray[np.int64] = np.cumsum(self._counts) - self._counts
        self._check_sizes()

    def _check_sizes(self) -> None:
        classes = len(self._counts)
        if self.way[1] > classes:
            raise DataError(
                f"{self.way[1]}-way tasks need {self.way[1]} classes, but this split has "
                f"{classes}: lower way or use a split with more classes (of a folder, by its "
                "fractions or csv)"
            )
        need = self.shot[1] + self.query[1]
        smallest = int(self._counts.argmin())
        name, count = self.dataset.class_names[smallest], self._counts[smallest]
        if count < need:
            raise DataError(
                f"class '{name}' has {count} images, but {self.shot[1]} shots + {self.query[1]} "
                f"queries need {need}: lower shot or query"
            )

    def __repr__(self) -> str:
        augmented = "" if self.augment is None else f", {self.augment}"
        return (
            f"EpisodicSampler({self.describe()}, {self.tasks} tasks a batch, seed {self.seed}, "
            f"{kind_of(self.dtype, self.device)}{augmented}\n  from {self.dataset})"
        )

    def _repr_html_(self) -> str | None:
        """A figure of the first tasks, for notebooks; None unless images are grey or RGB."""
        first = self.between(0, min(self.tasks, 2))
        if not first.is_pictures:
            return None
        return first.drawn(repr(self), self.dataset.class_names)

    @property
    def pool(self) -> Inputs:
        """The examples of the data set, ``[M, ...]``; images are uint8."""
        return self.dataset.inputs

    def plain(self) -> EpisodicSampler:
        """The same tasks without augmentation."""
        plain = copy.copy(self)
        plain.augment = None
        return plain

    def describe(self) -> str:
        """Text for tables: way, shot and queries per class."""
        way, shot, query = (
            str(low) if low == high else f"{low}..{high}"
            for low, high in (self.way, self.shot, self.query)
        )
        return f"{way}-way {shot}-shot {query} queries a class"

    def batch(self, index: int, embeddings: Tensor | None = None) -> TaskBatch:
        """The tasks ``index * T`` to ``index * T + T - 1``.

        With ranges of sizes, tasks are padded to the upper ends of the ranges.

        Args:
            index: batch index, at least 0.
            embeddings: floating-point ``[M, ...]``, returned in place of the M images.

        Raises:
            DataError: if ``index`` is negative, or embeddings are combined with augmentation.
        """
        if index < 0:
            raise DataError(f"index is {index}: it must be at least 0")
        return self.between(index * self.tasks, (index + 1) * self.tasks, embeddings)

    def between(self, start: int, stop: int, embeddings: Tensor | None = None) -> TaskBatch:
        """The tasks ``start`` to ``stop - 1`` as one batch; otherwise as ``batch``.

        Raises:
            DataError: if embeddings are combined with augmentation.
        """
        if embeddings is not None and self.augment is not None:
            raise DataError(
                "embeddings are of unaugmented images, but this sampler augments: use a sampler "
                "whose augment is None"
            )
        numbers = range(start, stop)
        classes, support, query = self._draw(numbers)
        support_x, support_y = self._gather(support, embeddings, numbers, part=0)
        query_x, query_y = self._gather(query, embeddings, numbers, part=1)
        # ``to`` checks for padding while the labels are on the CPU, which avoids a host sync.
        return TaskBatch(support_x, support_y, query_x, query_y, torch.from_numpy(classes)).to(
            self.device
        )

    def _draw(
        self, numbers: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Classes ``[T, N]`` and image indices ``[T, N, K]``, ``[T, N, Q]``; -1 where padded."""
        classes = np.full((len(numbers), self.way[1]), -1)
        shots, queries = np.empty((2, len(numbers)), dtype=np.int64)
        drawn: list[NDArray[np.float64]] = []
        for t, number in enumerate(numbers):
            rng = np.random.default_rng((self.seed, number))
            way, shots[t], queries[t] = (
                low if low == high else int(rng.integers(low, high + 1))
                for low, high in (self.way, self.shot, self.query)
            )
            chosen = rng.choice(len(self._counts), size=way, replace=False)
            images = int(self._counts[chosen].max())
            classes[t, :way] = chosen
            drawn.append(rng.random((way, images)))
        # Of the largest class drawn, not of all: one large class costs the tasks it is in.
        most = max((own.shape[1] for own in drawn), default=1)
        keys = np.full((*classes.shape, most), np.inf)
        for row, own in zip(keys, drawn, strict=True):
            row[: own.shape[0], : own.shape[1]] = own
        # A random permutation of each class's images: argsort of uniform keys, absent images last.
        keys[np.arange(most) >= self._counts[classes][..., None]] = np.inf
        order = keys.argsort(axis=2)[..., : self.shot[1] + self.query[1]]
        order += self._starts[classes][..., None]

        def part(
            first: NDArray[np.int64], count: NDArray[np.int64], size: int
        ) -> NDArray[np.int64]:
            position = np.arange(size)
            rows = np.take_along_axis(order, (first[:, None] + position)[:, None], axis=2)
            real = (position < count[:, None])[:, None] & (classes >= 0)[..., None]
            return np.where(real, rows, -1)

        support = part(np.zeros_like(shots), shots, self.shot[1])
        return classes, support, part(shots, queries, self.query[1])

    def _gather(
        self,
        rows: NDArray[np.int64],
        embeddings: Tensor | None,
        numbers: Sequence[int],
        part: int,
    ) -> tuple[Inputs, Tensor]:
        """Inputs ``[T, N*K, ...]`` and labels ``[T, N*K]`` of example indices ``[T, N, K]``."""
        tasks, way, images_per_class = rows.shape
        flat = torch.from_numpy(rows.reshape(-1))
        source = self.dataset.inputs if embeddings is None else embeddings
        chosen = each(lambda x: x[send(flat.clamp(min=0), x.device)], source)
        inputs: Inputs
        if self.augment is not None:
            draws = draw(self.seed, numbers, way * images_per_class, part)
            inputs = self.augment(one_of(chosen).to(self.device), draws, self.dtype)
        else:
            inputs = each(lambda x: as_inputs(x, self.device, self.dtype), chosen)
        labels = torch.arange(way).repeat_interleave(images_per_class).repeat(tasks)
        padded = flat < 0
        if padded.any():
            mask = send(padded, self.device)
            inputs = each(
                lambda x: x.masked_fill_(mask.reshape(-1, *[1] * (x.ndim - 1)), 0), inputs
            )
            labels[padded] = -1
        shape = (tasks, way * images_per_class)
        return each(lambda x: x.reshape(*shape, *x.shape[1:]), inputs), labels.reshape(shape)


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(
            f"device is '{device}': it must be one of PyTorch, such as cpu or cuda:1"
        ) from error


def _range(name: str, size: int | Range) -> Range:
    low, high = (size, size) if isinstance(size, int) else size
    if low > high:
        raise DataError(f"{name} is {size}: it must be a positive integer or an ascending range")
    return low, high
