"""Episodes as a pure function of a seed and an index."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.batch import TaskBatch
from tasks.dataset import ClassDataset, intensities
from tasks.errors import DataError

Range = tuple[int, int]


class TaskSource(Protocol):
    """Anything that yields batches of tasks by index, the same tasks for the same index."""

    def batch(self, index: int) -> TaskBatch:
        """The index-th batch of tasks."""
        ...


class EpisodicSampler:
    """Draws N-way K-shot tasks with Q queries a class from a data set.

    Task ``i`` depends on ``(seed, i)`` alone: batch size, device, number of processes and what
    was drawn before do not change it. Batch ``b`` holds tasks ``b*T`` to ``b*T + T - 1``. Classes
    of a task are distinct, its images are distinct, so support and query never overlap.

    Args:
        dataset: the classes to draw from; images are gathered on its device.
        way: N, or an inclusive range to draw it from for each task.
        shot: K, or a range; one number holds for all classes of a task.
        query: Q a class, or a range.
        tasks: T, tasks a batch.
        seed: any non-negative integer.
        device: where the batch goes; the data set's device by default.
        dtype: of the images, which are scaled to [0, 1].

    Raises:
        DataError: if a size is not positive, the seed is negative, ``dtype`` is not floating, or
            the data set has too few classes or images.
    """

    def __init__(
        self,
        dataset: ClassDataset,
        *,
        way: int | Range,
        shot: int | Range,
        query: int | Range,
        tasks: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dataset = dataset
        self.way, self.shot, self.query = (
            _range("way", way),
            _range("shot", shot),
            _range("query", query),
        )
        if tasks < 1:
            raise DataError(f"tasks is {tasks}: it must be a positive integer")
        if seed < 0:
            raise DataError(f"seed is {seed}: it must not be negative")
        if not dtype.is_floating_point:
            raise DataError(f"dtype is {dtype}: images in [0, 1] need a floating-point type")
        self.tasks = tasks
        self.seed = seed
        self.device = torch.device(device) if device is not None else dataset.images.device
        self.dtype = dtype
        self._counts: NDArray[np.int64] = dataset.counts.cpu().numpy()
        self._starts: NDArray[np.int64] = np.cumsum(self._counts) - self._counts
        self._check_sizes()

    def _check_sizes(self) -> None:
        classes = len(self._counts)
        if self.way[1] > classes:
            raise DataError(
                f"{self.way[1]}-way tasks need {self.way[1]} classes; this split has {classes}: "
                "lower --way or use a split with more classes"
            )
        need = self.shot[1] + self.query[1]
        smallest = int(self._counts.argmin())
        name, count = self.dataset.class_names[smallest], self._counts[smallest]
        if count < need:
            raise DataError(
                f"class '{name}' has {count} images; {self.shot[1]} shots + {self.query[1]} "
                f"queries need {need}: lower --shot or --query"
            )

    def describe(self) -> str:
        """Way, shot and queries a class, as words for a table."""
        way, shot, query = (
            str(low) if low == high else f"{low}..{high}"
            for low, high in (self.way, self.shot, self.query)
        )
        return f"{way}-way {shot}-shot {query} queries a class"

    def batch(self, index: int, embeddings: Tensor | None = None) -> TaskBatch:
        """The tasks ``index * T`` to ``index * T + T - 1``.

        Padded only where a range makes their sizes differ, to the upper end of the range.

        Args:
            index: counts from 0.
            embeddings: ``[M, ...]``, floating, to be handed out in place of the M images.

        Raises:
            DataError: if the index is negative.
        """
        if index < 0:
            raise DataError(f"index is {index}: batches count from 0")
        tasks = [self._draw(index * self.tasks + t) for t in range(self.tasks)]
        classes, support, query = (np.stack(part) for part in zip(*tasks, strict=True))
        support_x, support_y = self._gather(support, embeddings)
        query_x, query_y = self._gather(query, embeddings)
        return TaskBatch(
            support_x, support_y, query_x, query_y, torch.from_numpy(classes).to(self.device)
        )

    def _draw(self, task: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Classes ``[N]`` and image rows ``[N, K]``, ``[N, Q]`` of one task; -1 where padded."""
        rng = np.random.default_rng((self.seed, task))
        way, shot, query = (
            low if low == high else int(rng.integers(low, high + 1))
            for low, high in (self.way, self.shot, self.query)
        )
        chosen = rng.choice(len(self._counts), size=way, replace=False)
        # A random order of each class's images: sort uniform keys, absent images last.
        keys = rng.random((way, int(self._counts[chosen].max())))
        keys[np.arange(keys.shape[1]) >= self._counts[chosen, None]] = np.inf
        order = keys.argsort(axis=1)[:, : shot + query] + self._starts[chosen, None]

        classes = np.full(self.way[1], -1)
        support = np.full((self.way[1], self.shot[1]), -1)
        queries = np.full((self.way[1], self.query[1]), -1)
        classes[:way] = chosen
        support[:way, :shot] = order[:, :shot]
        queries[:way, :query] = order[:, shot:]
        return classes, support, queries

    def _gather(self, rows: NDArray[np.int64], embeddings: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images ``[T, N*K, C, H, W]`` and labels ``[T, N*K]`` of image rows ``[T, N, K]``."""
        tasks, way, images_per_class = rows.shape
        flat = torch.from_numpy(rows.reshape(-1))
        source = self.dataset.images if embeddings is None else embeddings
        chosen = source[flat.clamp(min=0).to(source.device)]
        if embeddings is None:
            images = intensities(chosen, self.device, self.dtype)
        else:
            images = chosen.to(self.device).to(self.dtype)
        labels = torch.arange(way).repeat_interleave(images_per_class).repeat(tasks)
        padded = flat < 0
        if padded.any():
            images[padded.to(self.device)] = 0
            labels[padded] = -1
        shape = (tasks, way * images_per_class)
        return images.reshape(*shape, *source.shape[1:]), labels.reshape(shape).to(self.device)


def _range(name: str, size: int | Range) -> Range:
    low, high = (size, size) if isinstance(size, int) else size
    if not 1 <= low <= high:
        raise DataError(f"{name} is {size}: it must be a positive integer or an ascending range")
    return low, high
