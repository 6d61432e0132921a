"""``Counts``: confusions and calibration as whole numbers, which parts of an evaluation add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.objectives.cross_entropy import mask_classes
from fewshot_blo.tasks import TaskBatch

BINS = 15
_UNIT = 2.0**30
_MOST_PENDING = 2**20
_MOST_CLASSES = 2**31


@dataclass(frozen=True)
class Counts:
    """Numbers of queries; those of several parts add up exactly, in any order.

    Only pairs of classes that occurred are kept, so that memory does not grow with the square of
    the number of classes.

    Attributes:
        pairs: ``[P, 3]``, int64, on the CPU: true class, predicted class and number of queries,
            ascending. Classes are indices into the data set's ``class_names``.
        bins: ``[15, 4]``, int64, on the CPU: for each interval of the confidence, the sum of the
            confidences in units of 2^-30 and the sum of what that leaves in units of 2^-60, the
            number of correct queries and the number of queries.
    """

    pairs: Tensor
    bins: Tensor

    @classmethod
    def none(cls) -> Counts:
        """Of no queries."""
        return cls(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(BINS, 4, dtype=torch.int64))

    @classmethod
    def of_confusion(cls, confusion: Tensor) -> Counts:
        """Those of a confusion matrix ``[C, C]``, without confidences."""
        places = confusion.nonzero()
        pairs = torch.cat([places, confusion[places[:, :1], places[:, 1:]]], 1)
        return cls(pairs.long(), cls.none().bins)

    @classmethod
    def sum(cls, parts: Sequence[Counts]) -> Counts:
        """Those of all parts together."""
        pairs = torch.cat([part.pairs for part in parts])
        return cls(_added(pairs), torch.stack([part.bins for part in parts]).sum(0))

    @property
    def classes(self) -> Tensor:
        """Indices of the C classes that were drawn, ``[C]``, ascending."""
        classes: Tensor = self.pairs[:, 0].unique()
        return classes

    def confusion(self) -> Tensor:
        """Number of queries by true class (row) and predicted class (column), ``[C, C]``."""
        classes = self.classes
        rows, columns = (torch.searchsorted(classes, self.pairs[:, i].contiguous()) for i in (0, 1))
        matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        matrix[rows, columns] = self.pairs[:, 2]
        return matrix

    def by_class(self) -> tuple[Tensor, Tensor]:
        """Number of correct queries and number of queries of each drawn class, each ``[C]``."""
        classes, row = self.pairs[:, 0].unique(return_inverse=True)
        count = self.pairs[:, 2]
        right = count * (self.pairs[:, 0] == self.pairs[:, 1])
        empty = torch.zeros_like(classes)
        return empty.index_add(0, row, right), empty.index_add(0, row, count)

    def calibration_error(self) -> float:
        """Expected calibration error: the mean of ``|accuracy - confidence|`` over the intervals.

        Intervals are weighted by their number of queries (Guo et al., arXiv 1706.04599, equation
        3). NaN without queries.
        """
        coarse, fine, right, queries = self.bins.double().unbind(1)
        confidence = (coarse + fine / _UNIT) / _UNIT
        return float((confidence - right).abs().sum() / queries.sum())


class Tally:
    """Counts of batches of queries, kept on the device.

    Batches are counted without a host sync; one is made about every million queries, when pairs
    of classes are moved to the CPU and equal ones are put together. (torchmetrics' calibration
    error keeps every query, has a 16th interval for confidences of exactly 1, and needs a
    torchvision that loads.)

    Args:
        device: device of the batches.
    """

    def __init__(self, device: torch.device) -> None:
        self._pairs = Counts.none().pairs
        self._pending: list[Tensor] = []
        self._bins = torch.zeros(BINS, 4, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, batch: TaskBatch) -> None:
        """Counts the queries of logits ``[T, N*Q, N]``."""
        logits = mask_classes(logits, batch.classes)
        confidence, chosen = logits.double().softmax(-1).max(-1)
        real = batch.query_y >= 0
        right = real & (chosen == batch.query_y)
        true, taken = (batch.classes.gather(1, y.clamp(min=0)) for y in (batch.query_y, chosen))
        row = (confidence * BINS).nan_to_num().long().clamp(max=BINS - 1)
        # Sums of whole numbers are the same in every order, those of float64 are not.
        scaled = confidence.nan_to_num() * real * _UNIT
        coarse = scaled.long()
        fine = ((scaled - coarse) * _UNIT).long()
        counted = torch.stack([coarse, fine, right.long(), real.long()], -1)
        self._bins.index_add_(0, row.flatten(), counted.flatten(0, 1))
        code = torch.where(real, true * _MOST_CLASSES + taken, -1)
        self._pending.append(code.flatten())
        if sum(map(len, self._pending)) > _MOST_PENDING:
            self._settle()

    def counts(self) -> Counts:
        """Those of all batches so far, on the CPU."""
        self._settle()
        return Counts(self._pairs, self._bins.cpu())

    def _settle(self) -> None:
        if not self._pending:
            return
        codes, numbers = torch.cat(self._pending).cpu().unique(return_counts=True)
        self._pending.clear()
        real = codes >= 0
        codes = codes[real]
        pairs = torch.stack([codes // _MOST_CLASSES, codes % _MOST_CLASSES, numbers[real]], 1)
        self._pairs = _added(torch.cat([self._pairs, pairs]))


def _added(pairs: Tensor) -> Tensor:
    """Pairs ``[P, 3]`` in ascending order, with the numbers of equal ones added."""
    places, row = pairs[:, :2].unique(dim=0, return_inverse=True)
    numbers = pairs.new_zeros(len(places)).index_add(0, row, pairs[:, 2])
    return torch.cat([places, numbers[:, None]], 1)
