"""Ridge regression of any targets for T tasks at once, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import Start, SupportSet, logarithms
from fewshot_blo.heads.linear_systems import solve
from fewshot_blo.heads.regression import RegressionHead
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive


@checked
@dataclass(frozen=True)
class RidgeRegressionHead(RegressionHead):
    """Ridge regression ``W x + b`` of targets ``[T, B, E]``, of tasks without classes.

    W and b minimise ``|X W' + b - Y|²/2 + λ |W|²/2``, without a penalty of b. λ is an outer
    variable, learned as a logarithm. The minimiser has a closed form, which gives an exact
    hypergradient without inner steps. For classes there is ``RidgeHead``.

    Source: Bertinetto et al., "R2D2" (arXiv 1805.08136), section 3.

    Attributes:
        lam: initial λ, weight of the l2 regularisation, positive.
    """

    lam: Positive = 1.0

    starts: ClassVar[tuple[Start, ...]] = ("closed_form", "zeros", "learned")

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """Logarithm of λ."""
        del features
        return logarithms(lam=self.lam)

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """``W' = X' (X X' + λ I)^-1 Y`` of centred X and Y, and ``b`` from their means."""
        real = support.real.unsqueeze(-1)
        count = real.sum(1, keepdim=True)
        mean_x, mean_y = (
            torch.where(real, z, 0).sum(1, keepdim=True) / count
            for z in (support.features, support.targets)
        )
        x, y = (support.features - mean_x) * real, (support.targets - mean_y) * real
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        kernel = x @ x.transpose(1, 2) + learned["log_lam"].exp() * identity
        weight = solve(kernel, y).transpose(1, 2) @ x
        bias = mean_y - mean_x @ weight.transpose(1, 2)
        return {"head.weight": weight, "head.bias": bias.squeeze(1)}

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """The regularised squared error that W and b minimise, ``[T]``."""
        error = self.logits(params, support.features, learned) - support.targets
        squares = torch.where(support.real.unsqueeze(-1), error.square(), 0).sum((1, 2))
        weight = params["head.weight"].square().sum((1, 2))
        return 0.5 * squares + 0.5 * learned["log_lam"].exp() * weight
