"""A batch of few-shot tasks, the only thing that data hands to learning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class TaskBatch:
    """T tasks of N way, K shot and Q queries a class, stacked along a leading task axis.

    Rows are class-major: support row ``n * K + k`` is the k-th shot of the task's n-th class.
    Tasks of unequal size are padded to the largest: a padded row has label -1 and a zero image,
    a padded class has index -1.

    Attributes:
        support_x: ``[T, N*K, ...]``, floating, image intensities in [0, 1].
        support_y: ``[T, N*K]``, int64 labels in ``0..N-1``, or -1 where padded.
        query_x: ``[T, N*Q, ...]``.
        query_y: ``[T, N*Q]``.
        classes: ``[T, N]``, int64 indices into the data set's ``class_names``, or -1 where padded.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    classes: Tensor

    def __post_init__(self) -> None:
        tasks = self.classes.shape[0]
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor.shape[0] != tasks:
                raise ValueError(
                    f"{field.name} has {tensor.shape[0]} tasks and classes has {tasks}: "
                    "the leading axis of every tensor counts tasks"
                )
        for images, labels in (("support_x", "support_y"), ("query_x", "query_y")):
            rows, expected = getattr(self, images).shape[:2], getattr(self, labels).shape
            if rows != expected:
                raise ValueError(
                    f"{images} has leading shape {list(rows)} and {labels} has {list(expected)}: "
                    "both are [tasks, rows]"
                )

    @property
    def tasks(self) -> int:
        """T, the number of tasks."""
        return self.classes.shape[0]

    @property
    def way(self) -> int:
        """N, the number of classes of the largest task."""
        return self.classes.shape[1]

    @property
    def padded(self) -> bool:
        """Whether some task is smaller than the batch's shape; a device is asked once."""
        return any(self._smaller)

    @cached_property
    def _smaller(self) -> tuple[bool, ...]:
        """Which tasks are smaller; parts and copies of the batch are told and need not ask."""
        smaller = (self.support_y < 0).any(1) | (self.query_y < 0).any(1)
        return tuple(smaller.tolist())

    def __getitem__(self, tasks: slice) -> TaskBatch:
        """The tasks of a slice, as views."""
        part = TaskBatch(*(getattr(self, field.name)[tasks] for field in fields(self)))
        return part._told(self._smaller[tasks])

    def chunks(self, size: int) -> Iterator[TaskBatch]:
        """Consecutive parts of at most ``size`` tasks, in order."""
        for start in range(0, self.tasks, size):
            yield self[start : start + size]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TaskBatch:
        """The same tasks on ``device``; ``dtype`` applies to the images only."""
        moved = TaskBatch(
            send(self.support_x, device, dtype),
            send(self.support_y, device),
            send(self.query_x, device, dtype),
            send(self.query_y, device),
            send(self.classes, device),
        )
        return moved._told(self._smaller)

    def known(self, *, padded: bool) -> TaskBatch:
        """The same tasks with ``padded`` as given, where the device must not be asked."""
        tasks = TaskBatch(*(getattr(self, field.name) for field in fields(self)))
        return tasks._told((padded,) * self.tasks)

    def _told(self, smaller: tuple[bool, ...]) -> TaskBatch:
        self.__dict__["_smaller"] = smaller
        return self


def send(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on a device; one that goes to a GPU does not wait for the work queued there."""
    to_gpu = torch.device(device).type == "cuda"
    return tensor.to(device=device, dtype=dtype, non_blocking=to_gpu)
