"""``TaskBatch``: a batch of few-shot tasks, the only form in which data reaches learning code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from html import escape

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.figure import inline_image
from fewshot_blo.records.scalars import in_short
from fewshot_blo.records.shapes import kind
from fewshot_blo.tasks.episode_figure import draw_episodes

_DRAWN_ROWS = 12


@dataclass(frozen=True)
class TaskBatch:
    """T tasks of N way, K shot and Q queries per class, stacked along a leading task dimension.

    Rows are class-major: support row ``n * K + k`` is the k-th shot of the task's n-th class.
    Tasks of unequal size are padded to the largest: a padded row has label -1 and a zero image,
    a padded class has index -1.

    Attributes:
        support_x: ``[T, N*K, ...]``, floating-point image intensities in [0, 1].
        support_y: ``[T, N*K]``, int64 labels in ``0..N-1``, or -1 where padded.
        query_x: ``[T, N*Q, ...]``, as ``support_x``.
        query_y: ``[T, N*Q]``, as ``support_y``.
        classes: ``[T, N]``, int64 indices into the data set's ``class_names``, or -1 where padded.

    Raises:
        ConfigurationError: if the tensors disagree in the number of tasks or rows.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    classes: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            tensor = getattr(self, field.name)
            if not isinstance(tensor, Tensor) or tensor.ndim < 2:
                raise ConfigurationError(
                    f"{field.name} is {in_short(tensor)}: it must be a tensor of at least 2 "
                    "dimensions, tasks and rows"
                )
        tasks = self.classes.shape[0]
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor.shape[0] != tasks:
                raise ConfigurationError(
                    f"{field.name} has {tensor.shape[0]} tasks and classes has {tasks}: "
                    "the first dimension of every tensor must be the number of tasks"
                )
        for images, labels in (("support_x", "support_y"), ("query_x", "query_y")):
            rows, expected = getattr(self, images).shape[:2], getattr(self, labels).shape
            if rows != expected:
                raise ConfigurationError(
                    f"{images} has leading shape {list(rows)} and {labels} has {list(expected)}: "
                    "both must be [tasks, rows]"
                )

    def __repr__(self) -> str:
        shot, over = divmod(self.support_x.shape[1], self.way)
        query, more = divmod(self.query_x.shape[1], self.way)
        sizes = f"{self.way}-way {shot}-shot {query} queries a class"
        if over or more:  # Rows that are not class-major, such as held-out parts of one data set.
            rows = (self.support_x.shape[1], self.query_x.shape[1])
            sizes = f"{self.way}-way, {rows[0]} support and {rows[1]} query rows"
        if self.padded:
            sizes = f"up to {sizes}"
        what = "images" if self.support_x.ndim == 5 else "inputs"
        shape = list(self.support_x.shape[2:])
        plural = "" if self.tasks == 1 else "s"
        return (
            f"TaskBatch({self.tasks} task{plural}, {sizes}, {what} {shape} {kind(self.support_x)})"
        )

    def _repr_html_(self) -> str | None:
        """A figure of the first tasks, for notebooks; None if the inputs are not images."""
        return self.drawn(repr(self)) if self.is_pictures and self.tasks else None

    def drawn(self, caption: str, class_names: Sequence[str] | None = None) -> str:
        """HTML with a caption and a figure of the first one or two tasks.

        Args:
            caption: plain text, which is escaped.
            class_names: the data set's class names, indexed by ``classes``; numbers by default.
        """
        shown = self[: 2 if 2 * self.way <= _DRAWN_ROWS else 1]
        picture = draw_episodes(*shown.tensors, class_names)
        return f"<pre>{escape(caption)}</pre>" + inline_image(picture, "support and query images")

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The five tensors, in the order of the attributes."""
        return self.support_x, self.support_y, self.query_x, self.query_y, self.classes

    @property
    def is_pictures(self) -> bool:
        """Whether the inputs are grey or RGB images, ``[1 or 3, H, W]``."""
        return self.support_x.ndim == 5 and self.support_x.shape[2] in (1, 3)

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
        """Whether any task is padded; cached, so it costs at most one host sync."""
        return any(self._smaller)

    @cached_property
    def _smaller(self) -> tuple[bool, ...]:
        """Which tasks are padded; slices and copies of the batch inherit it without a sync."""
        smaller = (self.support_y < 0).any(1) | (self.query_y < 0).any(1)
        return tuple(smaller.tolist())

    def __getitem__(self, tasks: slice) -> TaskBatch:
        """The tasks of a slice, as views."""
        part = TaskBatch(*(tensor[tasks] for tensor in self.tensors))
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
        """The same tasks with a known value of ``padded``, which avoids a host sync."""
        tasks = TaskBatch(*self.tensors)
        return tasks._told((padded,) * self.tasks)

    def _told(self, smaller: tuple[bool, ...]) -> TaskBatch:
        self.__dict__["_smaller"] = smaller
        return self


def send(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Moves a tensor to a device; copies to a GPU are non-blocking."""
    to_gpu = torch.device(device).type == "cuda"
    return tensor.to(device=device, dtype=dtype, non_blocking=to_gpu)
