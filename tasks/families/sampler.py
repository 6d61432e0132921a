"""``FunctionSampler``: regression tasks as a pure function of a seed and an index."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural
from fewshot_blo.records.shapes import kind_of
from fewshot_blo.tasks.batch import TaskBatch, send
from fewshot_blo.tasks.families.family import Array, Family, Function
from fewshot_blo.tasks.source import NumberedSource, check_dtype, device_named

Split = Literal["train", "validation", "test"]


@checked
class FunctionSampler(NumberedSource):
    """Draws tasks of K support and Q query points on a function of a family.

    Task ``i`` depends only on ``(seed, split, i)``, so that each split has tasks of its own. Inputs
    are ``[T, K, D]``, targets ``[T, K, 1]``.

    Args:
        family: the functions and their points.
        shot: K, number of support points.
        query: Q, number of query points.
        tasks: T, number of tasks in a batch.
        seed: seed of the tasks, at least 0.
        split: which stream of tasks.
        device: device of the batches.
        dtype: floating-point dtype of inputs and targets.

    Raises:
        DataError: if ``dtype`` is not floating-point.
    """

    def __init__(
        self,
        family: Family,
        *,
        shot: Counting = 10,
        query: Counting = 10,
        tasks: Counting = 25,
        seed: Natural = 0,
        split: Split = "train",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_dtype(dtype)
        self.family, self.shot, self.query, self.tasks = family, shot, query, tasks
        self.seed, self.split = seed, split
        self.device, self.dtype = device_named(device), dtype

    def __repr__(self) -> str:
        return (
            f"FunctionSampler({self.describe()}, {self.tasks} tasks a batch, seed "
            f"{self.seed}, {kind_of(self.dtype, self.device)})"
        )

    def describe(self) -> str:
        """Text for tables: the family, the numbers of points, and the stream of tasks."""
        sizes = f"{self.shot} shots, {self.query} queries"
        return f"{self.family.describe()}, {sizes}, {self.split} tasks"

    def between(self, start: int, stop: int, embeddings: Tensor | None = None) -> TaskBatch:
        """The tasks ``start`` to ``stop - 1`` as one batch.

        Raises:
            DataError: if embeddings are given: there is no fixed set of examples.
        """
        self.check_without(embeddings)
        drawn = [self._drawn(number) for number in range(start, stop)]
        x, y = (
            send(torch.from_numpy(np.stack(part)), self.device, self.dtype)
            for part in zip(*drawn, strict=True)
        )
        own, other = slice(self.shot), slice(self.shot, None)
        return TaskBatch(x[:, own], y[:, own], x[:, other], y[:, other]).known(padded=False)

    def function(self, number: int) -> Function:
        """The function of a task without noise, from points ``[M, D]`` to values ``[M, 1]``."""
        return self.family.draw(self._rng(number), self.shot + self.query)[1]

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, get_args(Split).index(self.split), number))

    def _drawn(self, number: int) -> tuple[Array, Array]:
        """Points ``[K+Q, D]`` and targets ``[K+Q, 1]`` of a task."""
        rng = self._rng(number)
        x, function = self.family.draw(rng, self.shot + self.query)
        y = function(x)
        return x, y + self.family.noise * rng.standard_normal(y.shape)
