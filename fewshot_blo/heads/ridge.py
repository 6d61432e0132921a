"""Ridge regression for T tasks at once, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import Start, SupportSet, logarithms
from fewshot_blo.heads.linear import ScaledLinearHead
from fewshot_blo.heads.linear_systems import solve
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive


@checked
@dataclass(frozen=True)
class RidgeHead(ScaledLinearHead):
    """Ridge regression ``s W x``: W minimises ``|X W' - Y|²/2 + λ |W|²/2`` for one-hot labels Y.

    s and λ are outer variables, learned as logarithms. The minimiser has a closed form, which gives
    an exact hypergradient without inner steps.

    Source: Bertinetto et al., "R2D2" (arXiv 1805.08136), equations 4 to 7.

    Attributes:
        scale: initial s, factor of the scores, positive.
        lam: initial λ, weight of the l2 regularisation, positive.
    """

    scale: Positive = 10.0
    lam: Positive = 1.0

    starts: ClassVar[tuple[Start, ...]] = ("closed_form", "zeros", "learned")

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """Logarithms of s and λ."""
        del features
        return logarithms(scale=self.scale, lam=self.lam)

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """``W' = X' (X X' + λ I)^-1 Y``, from a linear system of the size of the support set."""
        x = support.features * (support.labels >= 0).unsqueeze(-1)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        kernel = x @ x.transpose(1, 2) + learned["log_lam"].exp() * identity
        return {"head.weight": solve(kernel, support.one_hot).transpose(1, 2) @ x}

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """The regularised squared error that W minimises, ``[T]``, without padded classes."""
        weight = params["head.weight"] * (support.classes >= 0).unsqueeze(2)
        error = support.features @ weight.transpose(1, 2) - support.one_hot
        squares = (error * (support.labels >= 0).unsqueeze(-1)).square().sum((1, 2))
        return 0.5 * squares + 0.5 * learned["log_lam"].exp() * weight.square().sum((1, 2))
