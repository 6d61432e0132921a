"""``Torchmetrics``: any metric of torchmetrics, computed for each task by itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.objectives.metric import Metric
from fewshot_blo.records.checked import checked


@checked
@dataclass(frozen=True)
class Torchmetrics(Metric):
    """A metric of torchmetrics, such as ``Torchmetrics(torchmetrics.R2Score())``.

    It sees the real rows of one task at a time: outputs ``[B, ...]`` and targets ``[B, ...]``;
    rows with a negative label are left out where targets are labels.

    Attributes:
        metric: the metric; copies of it are used, one for each task.

    Raises:
        ConfigurationError: if the metric does not say whether higher values are better.
    """

    metric: Any

    def __post_init__(self) -> None:
        if getattr(self.metric, "higher_is_better", None) is None:
            raise ConfigurationError(
                f"{type(self.metric).__name__} does not say whether higher values are better "
                "(higher_is_better is None): set it, so that models can be chosen"
            )

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """As the metric says."""
        return bool(self.metric.higher_is_better)

    @property
    def name(self) -> str:
        """The metric's class."""
        return type(self.metric).__name__

    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """The metric of each task, ``[T]``, in a loop over tasks.

        Raises:
            ConfigurationError: if it is not one number.
        """
        # Of outputs of the same shape, whole targets are numbers, which may be negative.
        if not targets.is_floating_point() and targets.ndim == 2 and outputs.ndim == 3:
            rows = rows & (targets >= 0)
        found = []
        for output, target, real in zip(outputs.detach(), targets, rows, strict=True):
            metric = copy.deepcopy(self.metric).to(outputs.device)
            value = metric(output[real], target[real])
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ConfigurationError(
                    f"{self.name} does not return one number for a task: choose an average of its "
                    "classes or outputs, such as average='macro'"
                )
            found.append(value.reshape(()))
        return torch.stack(found)
