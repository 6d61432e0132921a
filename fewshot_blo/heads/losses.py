"""Losses and accuracies of T tasks at once, without padded rows and classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.errors import ConfigurationError


def task_cross_entropy(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy of each task over its real rows and classes, ``[T]``.

    Args:
        logits: ``[T, B, N]``.
        labels: ``[T, B]``, -1 where padded.
        classes: ``[T, N]``, -1 where padded.
    """
    logits = mask_classes(logits, classes)
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none"
    )
    return losses.reshape(labels.shape).sum(1) / (labels >= 0).sum(1)


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


def task_accuracy(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Fraction of each task's real rows classified correctly, ``[T]``; shapes as above."""
    right = mask_classes(logits, classes).argmax(-1) == labels
    return right.sum(1) / (labels >= 0).sum(1)


def one_hot(labels: Tensor, way: int, dtype: torch.dtype) -> Tensor:
    """One-hot labels ``[T, B, N]`` of labels ``[T, B]``; zero for a padded row."""
    rows = F.one_hot(labels.clamp(min=0), way) * (labels >= 0).unsqueeze(-1)
    return rows.to(dtype)
