"""``MixedSampler``: tasks of several data sets, each task from one of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, Positive
from fewshot_blo.tasks.batch import LABEL_OF_PADDING, TaskBatch, send
from fewshot_blo.tasks.class_sampler import ClassSampler
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.inputs import as_inputs, each, named
from fewshot_blo.tasks.protocols.protocol import Sizes
from fewshot_blo.tasks.source import NumberedSource


@checked
class MixedSampler(NumberedSource):
    """Draws each task from one of several samplers, as in training on Meta-Dataset.

    Task ``i`` is task ``i`` of a sampler that is drawn by its weight; it depends only on the seeds
    and ``i``. Tasks are padded to the largest sizes of all samplers.

    Args:
        samplers: samplers by the name of their data set, which class names begin with.
        tasks: T, number of tasks in a batch.
        weights: relative probability of each sampler, by name; equal by default.
        seed: seed of the choice of a sampler.

    Raises:
        DataError: if there is no sampler, the inputs or devices of two samplers differ, or weights
            are not those of the samplers.
    """

    def __init__(
        self,
        samplers: Mapping[str, ClassSampler],
        *,
        tasks: Counting,
        weights: Mapping[str, Positive] | None = None,
        seed: Natural = 0,
    ) -> None:
        if not samplers:
            raise DataError("there is no sampler to mix: give at least one, by name")
        weights = weights or dict.fromkeys(samplers, 1.0)
        if set(weights) != set(samplers):
            raise DataError(
                f"weights are of {', '.join(weights)}, and samplers are {', '.join(samplers)}: "
                "give one weight for each"
            )
        (first_name, first), *_ = samplers.items()
        for name, sampler in samplers.items():
            for what, own, other in (
                ("inputs", _kind(sampler), _kind(first)),
                ("device", sampler.device, first.device),
            ):
                if own != other:
                    raise DataError(
                        f"{what} of {name} and {first_name} differ ({own} and {other}): load both "
                        "with one size and convert them with with_channels, and give both samplers "
                        "one dtype and device"
                    )
        self.samplers = dict(samplers)
        self.tasks, self.seed = tasks, seed
        self.device, self.dtype = first.device, first.dtype
        sizes = zip(*(sampler.sizes for sampler in samplers.values()), strict=True)
        self.sizes = Sizes(*map(max, sizes))
        self.most_way = max(sampler.most_way for sampler in samplers.values())
        self.class_names = tuple(
            f"{name}/{own}" for name, sampler in samplers.items() for own in sampler.class_names
        )
        numbers = [len(sampler.class_names) for sampler in samplers.values()]
        self._first_class = np.cumsum(numbers) - numbers
        shares = np.array([weights[name] for name in samplers])
        self._shares = shares / shares.sum()

    def __repr__(self) -> str:
        each_one = "".join(f"\n  {name}: {sampler}" for name, sampler in self.samplers.items())
        return f"MixedSampler({self.tasks} tasks a batch, seed {self.seed},{each_one})"

    def describe(self) -> str:
        """Text for tables: each data set with its share and its tasks."""
        return "; ".join(
            f"{share:.3g} {name} ({sampler.describe()}, seed {sampler.seed})"
            for share, (name, sampler) in zip(self._shares, self.samplers.items(), strict=True)
        )

    def plain(self) -> Self:
        """The same tasks without augmentation."""
        plain = copy.copy(self)
        plain.samplers = {name: sampler.plain() for name, sampler in self.samplers.items()}
        return plain

    def between(self, start: int, stop: int, embeddings: Tensor | None = None) -> TaskBatch:
        """The tasks ``start`` to ``stop - 1`` as one batch.

        Raises:
            DataError: if embeddings are given: there is no single set of images.
        """
        self.check_without(embeddings)
        numbers = np.arange(start, stop)
        chosen = np.array([self._choice(int(number)) for number in numbers], dtype=np.int64)
        parts, places = [], []
        for place, sampler in enumerate(self.samplers.values()):
            if own := np.flatnonzero(chosen == place).tolist():
                batch = sampler.numbered(numbers[own].tolist())
                parts.append(self._padded(batch, int(self._first_class[place])))
                places += own
        order = send(torch.tensor(places).argsort(), self.device)
        together = TaskBatch.joined(parts)
        return TaskBatch.from_flat({name: x[order] for name, x in together.flat.items()})

    def _choice(self, number: int) -> int:
        # A stream of its own: those of the tasks and their augmentation begin with the same seed.
        stream = np.random.SeedSequence((self.seed, number), spawn_key=(2,))
        return int(np.random.default_rng(stream).choice(len(self._shares), p=self._shares))

    def _padded(self, batch: TaskBatch, first_class: int) -> TaskBatch:
        support, query = self.sizes
        classes = torch.where(batch.classes < 0, -1, batch.classes + first_class)
        return TaskBatch(
            each(partial(_lengthened, rows=support), batch.support_x),
            _lengthened(batch.support_y, support, LABEL_OF_PADDING),
            each(partial(_lengthened, rows=query), batch.query_x),
            _lengthened(batch.query_y, query, LABEL_OF_PADDING),
            _lengthened(classes, self.most_way, -1),
        )


def _kind(sampler: ClassSampler) -> Sequence[object]:
    inputs = sampler.dataset.inputs
    kinds = {n: (list(x.shape[1:]), _type(x, sampler.dtype)) for n, x in named(inputs).items()}
    # A tensor and a mapping of one tensor are different to a network.
    return isinstance(inputs, Mapping), kinds


def _type(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The type in which a network gets examples: torch.cat would convert whole numbers to it."""
    return as_inputs(x[:0], x.device, dtype).dtype


def _lengthened(tensor: Tensor, rows: int, value: int = 0) -> Tensor:
    """``[T, rows, ...]`` of ``[T, B, ...]``, with a value in further rows."""
    more = rows - tensor.shape[1]
    return F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, more), value=value)
