"""Classification by attention over the support set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.networks.heads import Start, normalize
from fewshot_blo.networks.losses import one_hot


@dataclass(frozen=True)
class MatchingHead:
    """``p_n = Σ_i a_i [y_i = n]`` with attention ``a = softmax(s cos(x, x_i))`` to support images.

    There is nothing to adapt: the parameters are the support set, and their loss is zero.

    Source: Vinyals et al., "Matching Networks" (arXiv 1606.04080), equations 1 and 2, without the
    full context embeddings; there s is 1.

    Attributes:
        scale: s.
    """

    scale: float = 10.0

    starts: ClassVar[tuple[Start, ...]] = ("closed_form",)
    prox: ClassVar[float] = 0.0

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """None."""
        del features
        return {}

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """An empty support set."""
        return {
            "head.support": features.new_zeros(tasks, 0, features.shape[-1]),
            "head.labels": features.new_zeros(tasks, 0, way),
        }

    def from_support(
        self, features: Tensor, labels: Tensor, way: int, learned: Params
    ) -> TaskParams:
        """The support set itself; a padded row has no label."""
        del learned
        return {"head.support": features, "head.labels": one_hot(labels, way, features.dtype)}

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Logarithms of the classes' attention."""
        del learned, real
        support, labels = params["head.support"], params["head.labels"]
        scores = self.scale * (normalize(features) @ normalize(support).transpose(1, 2))
        # [T, B, N, N*K]: the scores of a class's own rows, others at -inf.
        own = (labels > 0).transpose(1, 2).unsqueeze(1)
        of_class = scores.unsqueeze(2).masked_fill(~own, -torch.inf)
        absent = ~own.any(3)
        return torch.logsumexp(of_class.masked_fill(absent.unsqueeze(3), 0), 3)

    def loss(
        self,
        params: TaskParams,
        features: Tensor,
        labels: Tensor,
        classes: Tensor,
        learned: Params,
    ) -> Tensor:
        """Zero: adapting changes nothing."""
        return torch.stack([0 * p.flatten(1).sum(1) for p in params.values()]).sum(0)
