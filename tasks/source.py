"""``TaskSource``, the base class of what draws tasks: any tasks, by index."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import Self

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks.batch import TaskBatch
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.inputs import Inputs


class TaskSource(ABC):
    """Batches of tasks by index, for training, validation and test.

    A source of your own implements ``batch``; the other methods have defaults that are correct
    for any source.

    Attributes:
        seed: seed of the tasks, for texts; sources that draw differ by it.
        class_names: names of the classes that ``TaskBatch.classes`` indexes; empty if there are
            none.
        dtype: floating-point type of the inputs.
    """

    seed: int = 0
    dtype: torch.dtype = torch.float32
    class_names: Sequence[str] = ()

    @abstractmethod
    def batch(self, index: int) -> TaskBatch:
        """The tasks ``index * T`` to ``index * T + T - 1``.

        The same index must give the same tasks, and all batches must have the same number T.
        """

    def between(self, start: int, stop: int, embeddings: Tensor | None = None) -> TaskBatch:
        """The tasks ``start`` to ``stop - 1`` as one batch.

        Args:
            start, stop: numbers of tasks.
            embeddings: floating-point ``[M, ...]``, returned in place of the M examples of
                ``pool``.

        Raises:
            DataError: if embeddings are given and there is no pool, or batches differ in size.
        """
        self.check_without(embeddings)
        size = self._tasks_of_a_batch
        numbers = range(start // size, -(-stop // size))
        parts = [self.batch(number) for number in numbers]
        if wrong := [part.tasks for part in parts if part.tasks != size]:
            raise DataError(
                f"batches of {self.describe()} have {size} and {wrong[0]} tasks: they must have "
                "the same number, so that tasks can be numbered"
            )
        first = numbers.start * size
        shapes = [{name: list(x.shape[1:]) for name, x in part.flat.items()} for part in parts]
        for other in shapes[1:]:
            if other != shapes[0]:
                own = next(n for n in [*shapes[0], *other] if other.get(n) != shapes[0].get(n))
                raise DataError(
                    f"{own} of batches of {self.describe()} have shapes {shapes[0].get(own)} and "
                    f"{other.get(own)} a task: pad all batches to one number of rows, with labels "
                    "-1, or support_rows and query_rows where there are no classes"
                )
        return TaskBatch.joined(parts)[start - first : stop - first]

    @cached_property
    def _tasks_of_a_batch(self) -> int:
        return self.batch(0).tasks

    def check_without(self, embeddings: Tensor | None) -> None:
        """Checks that no embeddings are given, for a source that cannot use them.

        Raises:
            DataError: if they are.
        """
        if embeddings is not None:
            raise DataError(
                f"embeddings are given, but {self.describe()} does not draw its tasks from a fixed "
                "set of examples: leave them out"
                if self.pool is None
                else f"{self.describe()} has a pool, whose examples are embedded once, but its "
                "between takes no embeddings: override it to use them, or leave pool out"
            )

    def describe(self) -> str:
        """Text for tables, which tells different tasks apart: way, shot and queries, say."""
        return type(self).__name__

    @property
    def pool(self) -> Inputs | None:
        """The M examples that tasks are drawn from, to embed each once; None if there is no set."""
        return None

    def plain(self) -> Self:
        """The same tasks without augmentation."""
        return copy.copy(self)


class NumberedSource(TaskSource):
    """A source that draws a task by its number alone; a subclass implements ``between``.

    Attributes:
        tasks: T, number of tasks in a batch.
    """

    tasks: int

    def batch(self, index: int, embeddings: Tensor | None = None) -> TaskBatch:
        """The tasks ``index * T`` to ``index * T + T - 1``; otherwise as ``between``.

        Raises:
            DataError: if ``index`` is negative.
        """
        if index < 0:
            raise DataError(f"index is {index}: it must be at least 0")
        return self.between(index * self.tasks, (index + 1) * self.tasks, embeddings)

    @abstractmethod
    def between(self, start: int, stop: int, embeddings: Tensor | None = None) -> TaskBatch:
        """The tasks ``start`` to ``stop - 1`` as one batch; arguments as in ``TaskSource``."""


def check_dtype(dtype: torch.dtype) -> None:
    """Raises DataError unless a dtype of inputs is floating-point."""
    if not dtype.is_floating_point:
        raise DataError(f"dtype is {dtype}: it must be a floating-point dtype")


def device_named(device: torch.device | str) -> torch.device:
    """The device of a name.

    Raises:
        ConfigurationError: if PyTorch has none of this name.
    """
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(
            f"device is '{device}': it must be one of PyTorch, such as cpu or cuda:1"
        ) from error
