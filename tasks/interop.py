"""Data from other sources: arrays in memory, and task sets of learn2learn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, Way
from fewshot_blo.tasks.batch import TaskBatch
from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.source import TaskSource


def from_arrays(
    images: Tensor | NDArray[Any],
    labels: Tensor | NDArray[Any] | Sequence[int] | Sequence[str],
    *,
    names: Sequence[str] | None = None,
) -> ClassDataset:
    """A data set of images and labels in memory, in any order.

    Images are ``[M, H, W]``, ``[M, H, W, C]`` or ``[M, C, H, W]`` with C 1 or 3; where both
    layouts with C are possible, ``[M, C, H, W]`` is assumed. They are uint8, or floating-point in
    [0, 1] and then rounded to multiples of 1/255.

    Args:
        images: array or tensor.
        labels: class of each image, an integer or a string.
        names: class names: integer label ``n`` is class ``names[n]``; for string labels, the order
            of the classes. By default the sorted labels as text.

    Raises:
        DataError: if shapes, dtypes, values or names do not match, or a named class has no images.
    """
    pixels = _as_bytes(_channels_first(torch.as_tensor(images)))
    values = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if values.shape != pixels.shape[:1]:
        raise DataError(
            f"{len(pixels)} images have labels of shape {list(values.shape)}: "
            "there must be one label per image"
        )
    if values.dtype.kind not in "iuU":
        raise DataError(f"labels are {values.dtype}: they must be integers or strings")
    if names is None:
        distinct, positions = np.unique(values, return_inverse=True)
        names = [str(label) for label in distinct]
    elif values.dtype.kind == "U":
        positions = _positions(values, names)
    else:
        positions = values
        if len(values) and not 0 <= values.min() <= values.max() < len(names):
            raise DataError(
                f"labels run from {values.min()} to {values.max()}, but there are {len(names)} "
                f"names: labels must be indices into names, 0 to {len(names) - 1}"
            )
    order = torch.from_numpy(positions.astype(np.int64)).to(pixels.device)
    return ClassDataset.from_labels(pixels, order, names)


def _positions(values: NDArray[Any], names: Sequence[str]) -> NDArray[np.int64]:
    known = {name: position for position, name in enumerate(names)}
    foreign = sorted(set(values.tolist()) - known.keys())
    if foreign:
        raise DataError(f"label '{foreign[0]}' is not among the {len(names)} names: add it")
    return np.array([known[label] for label in values.tolist()], dtype=np.int64)


def _channels_first(images: Tensor) -> Tensor:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.permute(0, 3, 1, 2).contiguous()
    raise DataError(
        f"images have shape {list(images.shape)}: they must be [M, H, W], [M, H, W, C] or "
        "[M, C, H, W] with C 1 or 3; for other data use ClassDataset.from_labels"
    )


def _as_bytes(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(
            f"images are {images.dtype}: they must be uint8, or floating-point in [0, 1]"
        )
    if images.numel():
        low, high = (float(bound) for bound in images.aminmax())
        if not (low >= 0 and high <= 1):  # false for NaN, too
            raise DataError(
                f"floating-point images run from {low:g} to {high:g}: they must be in [0, 1], "
                "so divide values in 0..255 by 255, and undo any normalization"
            )
    return (images.double() * 255).round().to(torch.uint8)


class TaskSet(Protocol):
    """The part of ``learn2learn.data.Taskset`` (formerly ``TaskDataset``) that is used."""

    num_tasks: int

    def sample_task_description(self) -> Any:
        """Draws a task's images with the global random number generators."""
        ...

    def get_task(self, task_description: Any) -> tuple[Tensor, Tensor]:
        """The images ``[N*(K+Q), ...]`` of a task and their labels ``[N*(K+Q)]``."""
        ...


@checked
class Learn2LearnTasks(TaskSource):
    """The tasks of a learn2learn task set.

    Task ``i`` depends only on ``(seed, i)``: the global random number generators from which
    learn2learn draws are seeded for each task and restored afterwards, and learn2learn's cache of
    tasks is not used. If ``num_tasks`` is finite, task ``i`` is task ``i % num_tasks``. The first
    K images of a class are its support set and the next Q its query set, in the task set's order.
    ``classes`` of a batch holds the task set's labels in ascending order: the true classes, unless
    a transform such as ``RemapLabels`` replaced them.

    Args:
        taskset: yields K + Q images of each of N classes, in any order; image intensities are not
            changed.
        way: N, number of classes in a task.
        shot: K, number of support images per class.
        query: Q, number of query images per class.
        tasks: T, number of tasks in a batch.
        seed: seed of the tasks, at least 0.

    Raises:
        DataError: if a size is not positive; on drawing, if a task does not have N classes of
            K + Q images.
    """

    def __init__(
        self,
        taskset: TaskSet,
        *,
        way: Way,
        shot: Counting,
        query: Counting,
        tasks: Counting,
        seed: Natural = 0,
    ) -> None:
        self.taskset = taskset
        self.way, self.shot, self.query = way, shot, query
        self.tasks = tasks
        self.seed = seed

    def describe(self) -> str:
        """Text for tables: way, shot and queries per class."""
        return f"{self.way}-way {self.shot}-shot {self.query} queries a class of a task set"

    def batch(self, index: int) -> TaskBatch:
        """The tasks ``index * T`` to ``index * T + T - 1``."""
        tasks = [self._draw(index * self.tasks + t) for t in range(self.tasks)]
        support_x, query_x, classes = (torch.stack(part) for part in zip(*tasks, strict=True))
        labels = torch.arange(self.way)
        return TaskBatch(
            support_x,
            labels.repeat_interleave(self.shot).repeat(self.tasks, 1),
            query_x,
            labels.repeat_interleave(self.query).repeat(self.tasks, 1),
            classes,
        )

    def _draw(self, task: int) -> tuple[Tensor, Tensor, Tensor]:
        """Support ``[N*K, ...]``, query ``[N*Q, ...]`` and labels ``[N]`` of one task."""
        if self.taskset.num_tasks > 0:
            task %= self.taskset.num_tasks
        with _seeded(self.seed, task):
            images, labels = self.taskset.get_task(self.taskset.sample_task_description())
        values = labels.cpu().numpy()
        classes, counts = np.unique(values, return_counts=True)
        if len(classes) != self.way:
            raise DataError(
                f"task {task} has {len(classes)} classes, but way is {self.way}: "
                "set way as in the task set's NWays"
            )
        size = self.shot + self.query
        for label, count in zip(classes, counts, strict=True):
            if count != size:
                raise DataError(
                    f"task {task} has {count} images of class {label}, but {self.shot} shots + "
                    f"{self.query} queries need {size}: set the task set's KShots to {size}"
                )
        # [N, K+Q], whatever the order of the rows.
        rows = torch.from_numpy(np.argsort(values, kind="stable").reshape(self.way, size))
        support, query = rows[:, : self.shot].flatten(), rows[:, self.shot :].flatten()
        return images[support], images[query], torch.from_numpy(classes.astype(np.int64))


@contextmanager
def _seeded(seed: int, task: int) -> Iterator[None]:
    """Seeds the global CPU generators from seed and task for the body, and restores them."""
    words = [int(word) for word in np.random.SeedSequence((seed, task)).generate_state(3)]
    python, numpy_state, torch_state = (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
    )
    try:
        random.seed(words[0])
        np.random.seed(words[1])
        torch.default_generator.manual_seed(words[2])
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
