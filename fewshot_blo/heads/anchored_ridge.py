"""Ridge regression towards given weights of each class, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.anchored import AnchoredHead, with_support
from fewshot_blo.heads.head import Start, SupportSet, logarithms
from fewshot_blo.heads.linear_systems import solve
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive


@checked
@dataclass(frozen=True, eq=False)
class AnchoredRidgeHead(AnchoredHead):
    """``s W x`` with W that minimises ``|X W' - Y|²/2 + λ |W - W_0|²/2`` for one-hot labels Y.

    Ridge regression of the residuals of the prior weights W_0. s and λ are outer variables, learned
    as logarithms; with a large λ the weights stay at the priors. A class without a support row
    keeps its prior.

    Attributes:
        priors: ``[C, D]``, W_0 of each class of the data set, as in ``AnchoredHead``.
        scale: initial s, factor of the scores, positive.
        lam: initial λ, weight of the pull towards the priors, positive.
    """

    lam: Positive = 1.0

    starts: ClassVar[tuple[Start, ...]] = ("closed_form",)

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """Logarithms of s and λ."""
        return {**super().learned(features), **logarithms(lam=self.lam)}

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """``W' = W_0' + X' (X X' + λ I)^-1 (Y - X W_0')``, where a class has a support row."""
        anchors = self.anchors(support)
        x = support.features * (support.labels >= 0).unsqueeze(2)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        kernel = x @ x.transpose(1, 2) + learned["log_lam"].exp() * identity
        residual = support.one_hot - x @ anchors.transpose(1, 2)
        moved = solve(kernel, residual).transpose(1, 2) @ x
        return {"head.weight": anchors + moved * with_support(support)}

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """The objective that W minimises, ``[T]``, over the classes with a support row."""
        weight, counted = params["head.weight"], with_support(support)
        error = support.features @ weight.transpose(1, 2) - support.one_hot
        error = error * (support.labels >= 0).unsqueeze(2) * counted.transpose(1, 2)
        away = (weight - self.anchors(support)) * counted
        squares = error.square().sum((1, 2))
        return 0.5 * squares + 0.5 * learned["log_lam"].exp() * away.square().sum((1, 2))
