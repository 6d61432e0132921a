"""Matching Networks: classification by attention over the support set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import SupportSetHead, normalize
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive


@checked
@dataclass(frozen=True)
class MatchingHead(SupportSetHead):
    """Matching Networks: ``p_n = Σ_i a_i [y_i = n]`` with attention ``a = softmax(s cos(x, x_i))``.

    Queries attend to support images. There is nothing to adapt: the parameters are the support set,
    and their loss is zero.

    Source: Vinyals et al., "Matching Networks" (arXiv 1606.04080), equations 1 and 2, without the
    full context embeddings; there s is 1.

    Attributes:
        scale: s, factor of the cosines, an inverse temperature.
    """

    scale: Positive = 10.0

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Unnormalised log probabilities, ``[T, B, N]``: summed attention to each class."""
        del learned, real
        support, labels = params["head.support"], params["head.labels"]
        scores = self.scale * (normalize(features) @ normalize(support).transpose(1, 2))
        # [T, B, N, N*K]: the scores of a class's rows; those of other classes are -inf.
        own = (labels > 0).transpose(1, 2).unsqueeze(1)
        of_class = scores.unsqueeze(2).masked_fill(~own, -torch.inf)
        absent = ~own.any(3)
        return torch.logsumexp(of_class.masked_fill(absent.unsqueeze(3), 0), 3)
