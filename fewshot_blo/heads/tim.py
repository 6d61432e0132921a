"""TIM: class weights that maximise the mutual information of queries and predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewshot_blo.heads.head import normalize
from fewshot_blo.heads.transductive import Rows, TransductiveHead
from fewshot_blo.kernel import Adam
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural, NonNegative, Positive

_TINY = 1e-12


@checked
@dataclass(frozen=True)
class TIMHead(TransductiveHead):
    """Class weights by steps of Adam on ``a CE(support) - b H(Y) + c H(Y|X)``, from class means.

    H(Y) is the entropy of the mean prediction for the queries and H(Y|X) the mean entropy of the
    predictions. Logits are ``-τ |x - w_n|² / 2``, or ``τ cos(x, w_n)``. The entropy of the mean
    prediction draws the classes towards equal numbers of queries.

    Training through it keeps every step in memory: there, use tens of steps with a larger step
    size.

    Source: Boudiaf et al., "Transductive Information Maximization For Few-Shot Learning" (arXiv
    2008.11297), the variant TIM-GD of the authors' code, whose settings are the defaults; there
    features have unit length (the problem's setting ``unit``).

    Attributes:
        temperature: τ, an inverse temperature.
        steps: number of steps of Adam.
        step_size: step size of Adam.
        support_weight: a, weight of the cross-entropy of the support set.
        marginal_weight: b, weight of the entropy of the mean prediction.
        conditional_weight: c, weight of the mean entropy of the predictions.
        distance: "euclidean" or "cosine".
    """

    temperature: Positive = 15.0
    steps: Natural = 1000
    step_size: Positive = 1e-4
    support_weight: NonNegative = 0.1
    marginal_weight: NonNegative = 1.0
    conditional_weight: NonNegative = 0.1
    distance: Literal["euclidean", "cosine"] = "euclidean"

    def scores(self, rows: Rows) -> Tensor:
        """Logits of the queries under the last class weights, ``[T, B, N]``."""
        cosine = self.distance == "cosine"
        x = normalize(rows.all) if cosine else rows.all
        rule, weights = Adam(self.step_size), {"head.weight": rows.class_means}
        state = rule.init(weights, {})
        for number in range(self.steps):
            gradient = self._gradient(rows, x, weights["head.weight"])
            weights, state = rule.update({"head.weight": gradient}, state, weights, number)
        support = rows.support.shape[1]
        return self._logits(x[:, support:], weights["head.weight"])

    def slope(self, log_p: Tensor) -> Tensor:
        """Derivative of the negative entropy ``Σ p log p`` with respect to p, up to a constant.

        Args:
            log_p: logarithms of the probabilities.
        """
        return log_p

    def _logits(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.distance == "cosine":
            return self.temperature * (x @ normalize(weight).transpose(1, 2))
        half = 0.5 * weight.square().sum(2).unsqueeze(1)
        return self.temperature * (x @ weight.transpose(1, 2) - half)

    def _gradient(self, rows: Rows, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the objective, ``[T, N, D]``; zero for a class without a support row."""
        logits = self._logits(x, weight)
        slopes = self._slopes(rows, rows.log_softmax(logits))
        if self.distance == "euclidean":
            return self.temperature * (
                slopes.transpose(1, 2) @ x - slopes.sum(1).unsqueeze(2) * weight
            )
        # d cos(x, w) / dw = (x - cos(x, w) w / |w|) / |w| for x of unit length.
        along = (slopes * logits).sum(1).unsqueeze(2) / self.temperature
        inverse = torch.rsqrt(weight.square().sum(2, keepdim=True) + _TINY)
        across = slopes.transpose(1, 2) @ x - along * weight * inverse
        return self.temperature * across * inverse

    def _slopes(self, rows: Rows, log_p: Tensor) -> Tensor:
        """Derivative of the objective with respect to the logits, ``[T, S + B, N]``.

        For a function of p with derivative d it is ``p_n (d_n - Σ_k p_k d_k)``.
        """
        p = log_p.exp()
        support = rows.support.shape[1]
        count = rows.known.sum(1)[:, None, None].clamp(min=1)
        of_support = (p[:, :support] * rows.known.unsqueeze(2) - rows.labels) / count
        share = (rows.real / rows.real.sum(1, keepdim=True).clamp(min=1)).unsqueeze(2)
        p, log_p = p[:, support:], log_p[:, support:]
        marginal = (share * p).sum(1, keepdim=True)
        of_marginal = self.slope(marginal.clamp(min=_TINY).log())
        of_each = self.slope(log_p.masked_fill(~rows.present, 0))
        d = self.marginal_weight * of_marginal - self.conditional_weight * of_each
        of_queries = share * p * (d - (p * d).sum(2, keepdim=True))
        return torch.cat([self.support_weight * of_support, of_queries], 1)
