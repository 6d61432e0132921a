"""``TaskBatch``: a batch of tasks of any kind, the form in which data reaches learning code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from html import escape
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.figure import inline_image
from fewshot_blo.records.scalars import in_short
from fewshot_blo.tasks.episode_figure import draw_episodes
from fewshot_blo.tasks.inputs import Inputs, in_words, one_of

_DRAWN_ROWS = 12


LABEL_OF_PADDING = -1
"""Label of a padded row of a task with classes."""

UNKNOWN = -2
"""Label of a query of none of the task's classes: it exists, and no class is right."""


@dataclass(frozen=True, init=False)
class TaskBatch:
    """T tasks, each with support and query examples, stacked along a leading task dimension.

    Inputs are a tensor or a mapping of tensors, of any type; targets are any tensor. Classification
    tasks of N way, K shot and Q queries per class have the labels ``0..N-1`` as targets. Tasks of
    unequal size are padded to the largest: a padded row has zero inputs and label -1, a padded
    class index -1.

    Attributes:
        support_x: ``[T, B, ...]``; images are floating-point intensities in [0, 1].
        support_y: targets ``[T, B, ...]``; labels are int64 in ``0..N-1``, or -1 where padded.
        query_x: ``[T, B', ...]``, as ``support_x``.
        query_y: ``[T, B', ...]``, as ``support_y``; label -2 is a query of no class of the task.
        classes: ``[T, N]``, int64 indices into the data set's ``class_names``, or -1 where padded;
            ``[T, 0]`` for tasks without classes.
        support_rows, query_rows: ``[T, B]`` and ``[T, B']``, bool: False where padded. With classes
            they follow the labels, whatever is given; without, all rows are real by default.

    Raises:
        ConfigurationError: if the tensors disagree in the number of tasks or rows, inputs in their
            names, or rows are no masks.
    """

    support_x: Any  # ``Inputs``: whoever uses a part of it knows which of the two it is.
    support_y: Tensor
    query_x: Any
    query_y: Tensor
    classes: Tensor
    support_rows: Tensor
    query_rows: Tensor

    def __init__(
        self,
        support_x: Inputs,
        support_y: Tensor,
        query_x: Inputs,
        query_y: Tensor,
        classes: Tensor | None = None,
        *,
        support_rows: Tensor | None = None,
        query_rows: Tensor | None = None,
    ) -> None:
        given = {"support_x": support_x, "support_y": support_y}
        given |= {"query_x": query_x, "query_y": query_y}
        for name, inputs in given.items():
            tensors: Mapping[str, object] = {name: inputs}
            if isinstance(inputs, Mapping) and name.endswith("_x"):
                tensors = inputs
            for own, tensor in tensors.items():
                _check_tensor(name if own == name else f"{name}['{own}']", tensor)
        if classes is not None:
            _check_tensor("classes", classes)
        else:
            classes = support_y.new_zeros(len(support_y), 0, dtype=torch.int64)
        _check_rows("support_rows", support_rows)
        _check_rows("query_rows", query_rows)
        rows = {
            "support_rows": _real(support_y, support_rows, labelled=classes.shape[1] > 0),
            "query_rows": _real(query_y, query_rows, labelled=classes.shape[1] > 0),
        }
        for name, value in {**given, "classes": classes, **rows}.items():
            inputs = dict(value) if isinstance(value, Mapping) else value
            object.__setattr__(self, name, inputs)
        self._check()

    def _check(self) -> None:
        flat, tasks = self.flat, self.classes.shape[0]
        for name, tensor in flat.items():
            if tensor.shape[0] != tasks:
                raise ConfigurationError(
                    f"{name} has {tensor.shape[0]} tasks and classes has {tasks}: "
                    "the first dimension of every tensor must be the number of tasks"
                )
        for part, targets in (("support_", self.support_y), ("query_", self.query_y)):
            for name, tensor in flat.items():
                if name.startswith(part) and tensor.shape[:2] != targets.shape[:2]:
                    raise ConfigurationError(
                        f"{name} has leading shape {list(tensor.shape[:2])} and {part}y has "
                        f"{list(targets.shape[:2])}: both must be [tasks, rows]"
                    )
        _check_names(self.support_x, self.query_x)

    def __repr__(self) -> str:
        rows = self.support_y.shape[1], self.query_y.shape[1]
        sizes = f"{rows[0]} support and {rows[1]} query rows"
        if self.way:
            (shot, over), (query, more) = (divmod(count, self.way) for count in rows)
            # Rows may not be class-major, such as held-out parts of one data set.
            whole = f"{self.way}-way {shot}-shot {query} queries a class"
            sizes = f"{self.way}-way, {sizes}" if over or more else whole
        if self.padded:
            sizes = f"up to {sizes}"
        plural = "" if self.tasks == 1 else "s"
        targets = "" if self.way else f", targets {list(self.query_y.shape[2:])}"
        return f"TaskBatch({self.tasks} task{plural}, {sizes}, {self._inputs}{targets})"

    @property
    def _inputs(self) -> str:
        """Inputs in words."""
        what = "images" if one_of(self.support_x).ndim == 5 else "inputs"
        return f"{what} {in_words(self.support_x, 2)}"

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
        picture = draw_episodes(*shown.pictures, class_names)
        return f"<pre>{escape(caption)}</pre>" + inline_image(picture, "support and query images")

    @property
    def flat(self) -> dict[str, Tensor]:
        """All tensors by name, without rows that follow labels; ``support_x/name`` of a mapping."""
        found: dict[str, Tensor] = {}
        for field in fields(self)[: 5 if self.way else 7]:
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                found |= {f"{field.name}/{name}": x for name, x in value.items()}
            else:
                found[field.name] = value
        return found

    @classmethod
    def from_flat(cls, tensors: Mapping[str, Tensor]) -> TaskBatch:
        """The tasks of tensors by name, as ``flat`` returns them."""
        given: dict[str, Any] = {}
        for name, tensor in tensors.items():
            field, _, own = name.partition("/")
            if own:
                given.setdefault(field, {})[own] = tensor
            else:
                given[field] = tensor
        return cls(**given)

    @classmethod
    def joined(cls, parts: Sequence[TaskBatch]) -> TaskBatch:
        """The tasks of batches with the same numbers of rows, in order."""
        if len(parts) == 1:
            return parts[0]
        names = parts[0].flat
        return cls.from_flat({n: torch.cat([part.flat[n] for part in parts]) for n in names})

    @property
    def is_pictures(self) -> bool:
        """Whether the inputs are grey or RGB images of classes, ``[1 or 3, H, W]``."""
        x = self.support_x
        return isinstance(x, Tensor) and x.ndim == 5 and x.shape[2] in (1, 3) and self.way > 0

    @property
    def pictures(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Images, labels and classes, as ``draw_episodes`` takes them."""
        support, query = self.support_x, self.query_x
        assert isinstance(support, Tensor)
        assert isinstance(query, Tensor)
        return support, self.support_y, query, self.query_y, self.classes

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.support_y.device

    @property
    def tasks(self) -> int:
        """T, the number of tasks."""
        return self.classes.shape[0]

    @property
    def way(self) -> int:
        """N, the number of classes of the largest task; 0 for tasks without classes."""
        return self.classes.shape[1]

    @property
    def padded(self) -> bool:
        """Whether any task is padded; cached, so it costs at most one host sync."""
        return any(self._smaller)

    @cached_property
    def _smaller(self) -> tuple[bool, ...]:
        """Which tasks are padded; slices and copies of the batch inherit it without a sync."""
        smaller = (~self.support_rows).any(1) | (~self.query_rows).any(1)
        return tuple(smaller.tolist())

    def __getitem__(self, tasks: slice) -> TaskBatch:
        """The tasks of a slice, as views."""
        part = TaskBatch.from_flat({name: tensor[tasks] for name, tensor in self.flat.items()})
        return part._told(self._smaller[tasks])

    def chunks(self, size: int) -> Iterator[TaskBatch]:
        """Consecutive parts of at most ``size`` tasks, in order."""
        for start in range(0, self.tasks, size):
            yield self[start : start + size]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TaskBatch:
        """The same tasks on ``device``; ``dtype`` applies to floating-point tensors only."""
        moved = {
            name: send(x, device, dtype if x.is_floating_point() else None)
            for name, x in self.flat.items()
        }
        return TaskBatch.from_flat(moved)._told(self._smaller)

    def known(self, *, padded: bool) -> TaskBatch:
        """The same tasks with a known value of ``padded``, which avoids a host sync."""
        return TaskBatch.from_flat(self.flat)._told((padded,) * self.tasks)

    def _told(self, smaller: tuple[bool, ...]) -> TaskBatch:
        self.__dict__["_smaller"] = smaller
        return self


def _check_tensor(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor) or tensor.ndim < 2:
        raise ConfigurationError(
            f"{name} is {in_short(tensor)}: it must be a tensor of at least 2 dimensions, tasks "
            "and rows"
        )


def _check_names(support: Inputs, query: Inputs) -> None:
    names = [list(x) if isinstance(x, Mapping) else "one tensor" for x in (support, query)]
    if [] in names or {*names[0]} != {*names[1]}:
        raise ConfigurationError(
            f"inputs are {names[0]} in support_x and {names[1]} in query_x: both must be a tensor, "
            "or have the same names, at least one"
        )


def _check_rows(name: str, rows: object) -> None:
    if rows is None:
        return
    if not isinstance(rows, Tensor) or rows.dtype != torch.bool or rows.ndim != 2:
        shape = in_short(rows)
        if isinstance(rows, Tensor):
            shape = f"{rows.dtype} of shape {list(rows.shape)}"
        raise ConfigurationError(
            f"{name} are {shape}: they must be a mask, bool [tasks, rows], which is False where "
            "padded"
        )


def _real(targets: Tensor, rows: Tensor | None, *, labelled: bool) -> Tensor:
    """Which rows are real, ``[T, B]``."""
    if labelled:
        return targets != LABEL_OF_PADDING
    if rows is not None:
        return rows
    return torch.ones(targets.shape[:2], dtype=torch.bool, device=targets.device)


def send(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Moves a tensor to a device; copies to a GPU are non-blocking."""
    to_gpu = torch.device(device).type == "cuda"
    return tensor.to(device=device, dtype=dtype, non_blocking=to_gpu)
