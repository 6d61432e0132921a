"""``ClassSampler``: tasks of the classes of a data set, drawn by a protocol."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural
from fewshot_blo.records.shapes import kind_of
from fewshot_blo.tasks.augmentation import Augmentation, draw
from fewshot_blo.tasks.batch import LABEL_OF_PADDING, UNKNOWN, TaskBatch, send
from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.inputs import Inputs, as_inputs, each, one_of, zeroed
from fewshot_blo.tasks.protocols.protocol import Classes, Counts, Protocol
from fewshot_blo.tasks.source import NumberedSource, check_dtype, device_named


class _Plans(NamedTuple):
    """The plans of T tasks, padded to the most classes; ``order`` is a permutation of each class's
    images, of which the first are support images and the next ones queries.

    Shapes are ``[T, N]``, of ``order`` ``[T, N, images]`` and of ``known`` ``[T]``.
    """

    classes: Counts
    shots: Counts
    queries: Counts
    known: Counts
    order: Counts


@checked
class ClassSampler(NumberedSource):
    """Draws tasks of the classes of a data set by a protocol.

    Task ``i`` depends only on ``(seed, i)``, not on batch size, device, number of processes or
    earlier draws. Batch ``b`` holds tasks ``b*T`` to ``b*T + T - 1``. The classes of a task are
    distinct and so are its images: support and query sets never overlap. All batches have one
    shape: tasks are padded to the protocol's largest sizes.

    Args:
        dataset: classes to draw from; images are gathered on its device.
        protocol: how the classes and numbers of images of a task are drawn.
        tasks: T, number of tasks in a batch.
        seed: seed of the tasks, at least 0.
        device: device of the batches; the data set's device by default.
        dtype: floating-point dtype of the images, which are scaled to [0, 1].
        augment: random augmentation of each image, for training; it also depends only on
            ``(seed, i)``.

    Raises:
        DataError: if ``dtype`` is not floating-point, the images do not suit ``augment``, or the
            data set has too few classes or images.
    """

    def __init__(
        self,
        dataset: ClassDataset,
        protocol: Protocol,
        *,
        tasks: Counting,
        seed: Natural = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        augment: Augmentation | None = None,
    ) -> None:
        check_dtype(dtype)
        self.dataset = dataset
        self.protocol = protocol
        self.tasks = tasks
        self.seed = seed
        self.class_names = dataset.class_names
        self.device = one_of(dataset.inputs).device if device is None else device_named(device)
        self.dtype = dtype
        self.augment = augment if augment is not None and augment.active else None
        if self.augment is not None and not dataset.is_pictures:
            raise DataError(
                f"augment is for uint8 images, and the data set has {dataset.describe()}: leave it "
                "out"
            )
        if self.augment is not None:
            self.augment.check(dataset.images.shape[1:])
        self._classes = Classes(dataset.counts.cpu().numpy(), dataset.class_names)
        self._starts: Counts = np.cumsum(self._classes.counts) - self._classes.counts
        self.most_way, self.sizes = protocol.most_way, protocol.sizes(self._classes)

    def __repr__(self) -> str:
        augmented = "" if self.augment is None else f", {self.augment}"
        return (
            f"{type(self).__name__}({self.describe()}, {self.tasks} tasks a batch, seed "
            f"{self.seed}, {kind_of(self.dtype, self.device)}{augmented}\n  from {self.dataset})"
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

    def plain(self) -> Self:
        """The same tasks without augmentation."""
        plain = copy.copy(self)
        plain.augment = None
        return plain

    def describe(self) -> str:
        """Text for tables: way, shot and queries."""
        return self.protocol.describe()

    def between(self, start: int, stop: int, embeddings: Tensor | None = None) -> TaskBatch:
        """The tasks ``start`` to ``stop - 1`` as one batch.

        Raises:
            DataError: if embeddings are combined with augmentation.
        """
        return self.numbered(range(start, stop), embeddings)

    def numbered(self, numbers: Sequence[int], embeddings: Tensor | None = None) -> TaskBatch:
        """The tasks of these numbers as one batch.

        Raises:
            DataError: if embeddings are combined with augmentation.
        """
        if embeddings is not None and self.augment is not None:
            raise DataError(
                "embeddings are of unaugmented images, but this sampler augments: use a sampler "
                "whose augment is None"
            )
        plans = self._drawn(numbers)
        classes = np.full((len(numbers), self.most_way), -1)
        known = np.arange(self.most_way) < plans.known[:, None]
        classes[known] = plans.classes[:, : self.most_way][known[:, : plans.classes.shape[1]]]
        support = self._rows(plans, np.zeros_like(plans.shots), plans.shots, self.sizes.support)
        query = self._rows(plans, plans.shots, plans.queries, self.sizes.query)
        # ``to`` checks for padding while the labels are on the CPU, which avoids a host sync.
        return TaskBatch(
            self._gathered(support[0], embeddings, numbers, part=0),
            torch.from_numpy(support[1]),
            self._gathered(query[0], embeddings, numbers, part=1),
            torch.from_numpy(query[1]),
            torch.from_numpy(classes),
        ).to(self.device)

    def _drawn(self, numbers: Sequence[int]) -> _Plans:
        """The plans of tasks, and the order of their images."""
        plans, drawn = [], []
        for number in numbers:
            rng = np.random.default_rng((self.seed, number))
            plan = self.protocol.plan(self._classes, rng)
            plans.append(plan)
            images = int(self._classes.counts[plan.classes].max())
            drawn.append(rng.random((len(plan.classes), images)))
        # Of the largest class drawn, not of all: one large class costs the tasks it is in.
        way, most = (max((uniform.shape[i] for uniform in drawn), default=1) for i in (0, 1))
        classes, shots, queries = np.zeros((3, len(numbers), way), dtype=np.int64)
        keys = np.full((len(numbers), way, most), np.inf)
        for t, (plan, uniform) in enumerate(zip(plans, drawn, strict=True)):
            own = slice(len(plan.classes))
            classes[t, own], shots[t, own], queries[t, own] = plan[:3]
            keys[t, own, : uniform.shape[1]] = uniform
        # A random permutation of each class's images: argsort of uniform keys, absent images last.
        counts = self._classes.counts[classes]
        keys[np.arange(most) >= counts[..., None]] = np.inf
        known = np.array([len(plan.classes) - plan.unknown for plan in plans], dtype=np.int64)
        self._check(shots, queries, counts, known)
        needed = int((shots + queries).max(initial=0))
        order = keys.argsort(axis=2)[..., :needed] + self._starts[classes][..., None]
        return _Plans(classes, shots, queries, known, order)

    def _check(self, shots: Counts, queries: Counts, counts: Counts, known: Counts) -> None:
        """Checks plans, which may be those of a protocol of the user's own."""
        way, support, query = map(np.array, (self.most_way, *self.sizes))
        for what, number, most in (
            ("classes", known, way),
            ("support images", shots.sum(1), support),
            ("queries", queries.sum(1), query),
            ("images of a class", shots + queries, counts),
        ):
            over = number > most
            if over.any():
                allowed = np.broadcast_to(most, number.shape)[over][0]
                raise DataError(
                    f"{type(self.protocol).__name__} plans {number[over][0]} {what}, and {allowed} "
                    "are the most: correct its plan or its sizes"
                )

    def _rows(
        self, plans: _Plans, skipped: Counts, taken: Counts, size: int
    ) -> tuple[Counts, Counts]:
        """Image indices and labels ``[T, size]`` of one part; -1 where padded."""
        tasks, way, images = plans.order.shape
        position = np.arange(images) - skipped[..., None]
        real = (position >= 0) & (position < taken[..., None])
        first = np.cumsum(taken, 1) - taken
        if self.protocol.apart:
            first = np.broadcast_to(np.arange(way) * (size // self.most_way), first.shape)
        task = np.broadcast_to(np.arange(tasks)[:, None, None], real.shape)[real]
        row = (first[..., None] + position)[real]
        label = np.where(np.arange(way) < plans.known[:, None], np.arange(way), UNKNOWN)
        found = np.full((2, tasks, size), LABEL_OF_PADDING)
        found[0, task, row] = plans.order[real]
        found[1, task, row] = np.broadcast_to(label[..., None], real.shape)[real]
        return found[0], found[1]

    def _gathered(
        self, rows: Counts, embeddings: Tensor | None, numbers: Sequence[int], part: int
    ) -> Inputs:
        """Inputs ``[T, B, ...]`` of example indices ``[T, B]``."""
        flat = torch.from_numpy(rows.reshape(-1))
        source = self.dataset.inputs if embeddings is None else embeddings
        chosen = each(lambda x: x[send(flat.clamp(min=0), x.device)], source)
        inputs: Inputs
        if self.augment is not None:
            draws = draw(self.seed, numbers, rows.shape[1], part)
            inputs = self.augment(one_of(chosen).to(self.device), draws, self.dtype)
        else:
            inputs = each(lambda x: as_inputs(x, self.device, self.dtype), chosen)
        padded = flat < 0
        if padded.any():
            mask = send(padded, self.device)
            inputs = each(lambda x: zeroed(x, mask), inputs)
        return each(lambda x: x.reshape(*rows.shape, *x.shape[1:]), inputs)
