"""α-TIM: TIM with entropies that tolerate classes of unequal size among the queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fewshot_blo.heads.tim import TIMHead
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Above, NonNegative


@checked
@dataclass(frozen=True)
class AlphaTIMHead(TIMHead):
    """TIM with the entropies ``H_α(p) = (1 - Σ_n p_n^α) / (α - 1)`` of the predictions for queries.

    As α tends to 1 they tend to TIM's. With a larger α the entropy of the mean prediction depends
    less on how equal the numbers of queries of the classes are.

    Source: Veilleux et al., "Realistic Evaluation of Transductive Few-Shot Learning" (arXiv
    2204.11181), the authors' code, whose settings are the defaults: α is 2 for one shot and 7 from
    five shots on, the cross-entropy of the support set is the usual one, and features have unit
    length (the problem's setting ``unit``).

    Attributes:
        temperature: τ, an inverse temperature.
        steps: number of steps of Adam.
        step_size: step size of Adam.
        support_weight: weight of the cross-entropy of the support set.
        marginal_weight: weight of H_α of the mean prediction.
        conditional_weight: weight of the mean H_α of the predictions.
        distance: "euclidean" or "cosine".
        alpha: α, above 1.
    """

    support_weight: NonNegative = 1.0
    conditional_weight: NonNegative = 1.0
    alpha: Annotated[float, Above(1)] = 2.0

    def slope(self, log_p: Tensor) -> Tensor:
        """``α p^(α-1) / (α - 1)``, derivative of ``-H_α`` with respect to p.

        Args:
            log_p: logarithms of the probabilities.
        """
        return self.alpha / (self.alpha - 1) * ((self.alpha - 1) * log_p).exp()
