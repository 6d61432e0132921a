"""``GroupSampler``: tasks from groups of examples, a pure function of a seed and an index."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural
from fewshot_blo.records.shapes import kind_of
from fewshot_blo.tasks.batch import LABEL_OF_PADDING, TaskBatch, send
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.groups import GroupedDataset
from fewshot_blo.tasks.inputs import Inputs, as_inputs, each, zeroed
from fewshot_blo.tasks.source import NumberedSource, check_dtype, device_named


@checked
class GroupSampler(NumberedSource):
    """Draws tasks of K support and up to Q query examples of one group each.

    Task ``i`` depends only on ``(seed, i)``. Its group is drawn uniformly, its examples without
    replacement. A group of fewer than K + Q examples has fewer queries, and padded query rows.

    Args:
        dataset: the groups; examples are gathered on its device.
        shot: K, number of support examples.
        query: Q, largest number of query examples.
        tasks: T, number of tasks in a batch.
        seed: seed of the tasks, at least 0.
        device: device of the batches; the data set's device by default.
        dtype: floating-point dtype of inputs and targets.

    Raises:
        DataError: if a group has no more than K examples, or ``dtype`` is not floating-point.
    """

    def __init__(
        self,
        dataset: GroupedDataset,
        *,
        shot: Counting,
        query: Counting,
        tasks: Counting,
        seed: Natural = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_dtype(dtype)
        self.dataset, self.shot, self.query, self.tasks = dataset, shot, query, tasks
        self.seed, self.dtype = seed, dtype
        self.class_names = dataset.categories
        self.device = device_named(device) if device is not None else dataset.targets.device
        self._counts: NDArray[np.int64] = dataset.counts.cpu().numpy()
        self._starts: NDArray[np.int64] = np.cumsum(self._counts) - self._counts
        small = np.flatnonzero(self._counts <= shot)
        if len(small):
            raise DataError(
                f"{len(small)} of {len(self._counts)} groups have no query beside {shot} shots: "
                f"group '{dataset.group_names[small[0]]}' has {self._counts[small[0]]} examples; "
                "lower shot, or leave small groups out"
            )

    def __repr__(self) -> str:
        return (
            f"GroupSampler({self.describe()}, {self.tasks} tasks a batch, seed {self.seed}, "
            f"{kind_of(self.dtype, self.device)}\n  from {self.dataset})"
        )

    def describe(self) -> str:
        """Text for tables: the numbers of examples."""
        return f"{self.shot} shots, {self.query} queries of a group"

    @property
    def pool(self) -> Inputs:
        """The inputs of all examples, ``[M, ...]``."""
        return self.dataset.examples.inputs

    def between(self, start: int, stop: int, embeddings: Tensor | None = None) -> TaskBatch:
        """The tasks ``start`` to ``stop - 1``; embeddings ``[M, ...]`` in place of the inputs."""
        rows = torch.from_numpy(np.stack([self._rows(number) for number in range(start, stop)]))
        source = self.pool if embeddings is None else embeddings
        support_x, support_y = self._gather(source, rows[:, : self.shot])
        query_x, query_y = self._gather(source, rows[:, self.shot :])
        classes = torch.arange(len(self.class_names)).expand(len(rows), -1)
        real = rows[:, self.shot :] >= 0
        return TaskBatch(
            support_x,
            support_y,
            query_x,
            query_y,
            send(classes, self.device),
            query_rows=send(real, self.device),
        ).known(padded=not bool(real.all()))

    def _rows(self, number: int) -> NDArray[np.int64]:
        """Rows of a task's examples, ``[K+Q]``; -1 where padded."""
        rng = np.random.default_rng((self.seed, number))
        group = rng.integers(len(self._counts))
        drawn = rng.permutation(self._counts[group])[: self.shot + self.query]
        rows = np.full(self.shot + self.query, -1)
        rows[: len(drawn)] = self._starts[group] + drawn
        return rows

    def _gather(self, source: Inputs, rows: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs ``[T, B, ...]`` and targets ``[T, B, ...]`` of rows ``[T, B]``."""
        flat = rows.reshape(-1)
        padded = send(flat < 0, self.device)

        def taken(x: Tensor) -> Tensor:
            return as_inputs(x[send(flat.clamp(min=0), x.device)], self.device, self.dtype)

        targets = taken(self.dataset.targets)
        if self.class_names:
            targets = targets.masked_fill(padded, LABEL_OF_PADDING)
        else:
            targets = zeroed(targets, padded)
        inputs = each(lambda x: zeroed(taken(x), padded).reshape(*rows.shape, *x.shape[1:]), source)
        return inputs, targets.reshape(*rows.shape, *targets.shape[1:])
