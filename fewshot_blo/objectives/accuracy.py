"""Accuracy of tasks with classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewshot_blo.objectives.metric import Metric
from fewshot_blo.records.checked import checked


@checked
@dataclass(frozen=True)
class Accuracy(Metric):
    """Fraction of a task's rows with the right class; rows with a negative label do not count."""

    higher_is_better: ClassVar[bool] = True
    percent: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True

    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """Of logits ``[T, B, N]`` and labels ``[T, B]``; float64."""
        del rows  # Their labels are negative.
        right = outputs.argmax(-1) == targets
        return right.sum(1).double() / (targets >= 0).sum(1)
