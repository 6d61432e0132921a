"""Binary cross-entropy of logits, for targets of several labels or of probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.objectives.metric import Metric, check_shapes, mean_of_rows
from fewshot_blo.records.checked import checked


@checked
@dataclass(frozen=True)
class BinaryCrossEntropy(Metric):
    """Mean binary cross-entropy of logits over a task's rows and their entries."""

    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """Of logits and targets in [0, 1] of one shape, ``[T, B, ...]``."""
        check_shapes("the binary cross-entropy", outputs, targets)
        losses = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs), reduction="none")
        return mean_of_rows(losses, rows)
