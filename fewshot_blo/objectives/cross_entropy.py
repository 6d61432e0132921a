"""Cross-entropy of tasks with classes, without padded rows and classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.objectives.accuracy import Accuracy
from fewshot_blo.objectives.metric import Metric
from fewshot_blo.records.checked import checked


@checked
@dataclass(frozen=True)
class CrossEntropy(Metric):
    """Mean cross-entropy over a task's rows; rows with a negative label do not count."""

    needs_classes: ClassVar[bool] = True

    @property
    def usual_metric(self) -> Metric:
        """Accuracy."""
        return Accuracy()

    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """Of logits ``[T, B, N]`` and labels ``[T, B]``."""
        del rows  # Their labels are negative.
        losses = F.cross_entropy(
            outputs.flatten(0, 1),
            targets.clamp(min=-1).flatten(),
            ignore_index=-1,
            reduction="none",
        )
        return losses.reshape(targets.shape).sum(1) / (targets >= 0).sum(1)


def task_cross_entropy(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy of each task over its real rows and classes, ``[T]``.

    Args:
        logits: ``[T, B, N]``.
        labels: ``[T, B]``, -1 where padded.
        classes: ``[T, N]``, -1 where padded.
    """
    return CrossEntropy()(mask_classes(logits, classes), labels, labels >= 0)


def mask_classes(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits ``[T, B, N]`` with those of padded classes at -inf.

    Raises:
        ConfigurationError: if the numbers of logits and of classes differ.
    """
    if logits.shape[2] != classes.shape[1]:
        raise ConfigurationError(
            f"the network has {logits.shape[2]} outputs and the tasks are {classes.shape[1]}-way: "
            f"use {logits.shape[2]}-way tasks, or a head for any number of classes, whose start is "
            "not learned (problem.start: prototypes)"
        )
    return logits.masked_fill((classes < 0).unsqueeze(1), -torch.inf)


def one_hot(labels: Tensor, way: int, dtype: torch.dtype) -> Tensor:
    """One-hot labels ``[T, B, N]`` of labels ``[T, B]``; zero for a padded row."""
    rows = F.one_hot(labels.clamp(min=0), way) * (labels >= 0).unsqueeze(-1)
    return rows.to(dtype)
