"""``RegressionHead``, the base class of heads with linear outputs for tasks without classes."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import Head


class RegressionHead(Head):
    """A head with outputs ``W x + b`` for targets ``[T, B, E]``."""

    needs_classes: ClassVar[bool] = False

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """Zero weights ``[T, E, D]`` and biases ``[T, E]``."""
        weight = features.new_zeros(tasks, way, features.shape[-1])
        return {"head.weight": weight, "head.bias": features.new_zeros(tasks, way)}

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Outputs ``W x + b``, ``[T, B, E]``."""
        del learned, real
        return features @ params["head.weight"].transpose(1, 2) + params["head.bias"].unsqueeze(1)
