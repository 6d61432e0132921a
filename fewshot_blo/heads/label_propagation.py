"""Transductive label propagation on a graph over support and query set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import SupportSetHead, logarithms
from fewshot_blo.heads.linear_systems import solve
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Decay, Positive

_TINY = 1e-12


@checked
@dataclass(frozen=True)
class LabelPropagationHead(SupportSetHead):
    """Label propagation ``p ∝ (I - α S)^-1 Y`` of the support set's labels Y along a graph.

    ``S = D^-1/2 W D^-1/2`` with ``w_ij = exp(-|x_i - x_j|² / 2σ²)`` between neighbours. The
    prediction for a query depends on the other queries: it is transductive in every norm mode. σ is
    an outer variable, learned as a logarithm. There is nothing to adapt, as in ``MatchingHead``.

    Sources: Zhou et al., "Learning with Local and Global Consistency" (NIPS 2003); for few-shot
    tasks Liu et al., "TPN" (arXiv 1805.10002), where a network gives σ for each image.

    Attributes:
        sigma: initial σ, length scale of the distances between features, positive.
        alpha: α, strength of the propagation, in [0, 1).
        neighbours: number of nearest neighbours of a row; an edge joins two rows if one of them is
            a neighbour of the other.
    """

    sigma: Positive = 0.3
    alpha: Decay = 0.9
    neighbours: Counting = 20

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """Logarithm of σ."""
        del features
        return logarithms(sigma=self.sigma)

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Logarithms of the propagated labels, ``[T, B, N]``."""
        support, labels = params["head.support"], params["head.labels"]
        rows = torch.cat([support, features], 1)
        queries = torch.ones_like(features[..., 0], dtype=torch.bool) if real is None else real
        known = labels.detach().sum(2) > 0
        weights = self._graph(rows, torch.cat([known, queries], 1), learned["log_sigma"].exp())
        given = torch.cat([labels, labels.new_zeros(*features.shape[:2], labels.shape[2])], 1)
        identity = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        spread = solve(identity - self.alpha * weights, given)
        return (spread[:, support.shape[1] :] + _TINY).log()

    def _graph(self, rows: Tensor, real: Tensor, sigma: Tensor) -> Tensor:
        """S, ``[T, B, B]``; a padded row has no edges."""
        squares = rows.square().sum(2)
        distances = squares.unsqueeze(1) + squares.unsqueeze(2) - 2 * rows @ rows.transpose(1, 2)
        weights = (-distances.clamp(min=0) / (2 * sigma**2)).exp()
        itself = torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device)
        joined = real.unsqueeze(1) & real.unsqueeze(2) & ~itself
        weights = weights * joined
        count = min(self.neighbours, rows.shape[1])
        least = weights.detach().topk(count, 2).values[..., -1:]
        near = weights.detach() >= least
        weights = weights * (near | near.transpose(1, 2))
        scale = torch.rsqrt(weights.sum(2) + _TINY)
        graph: Tensor = scale.unsqueeze(2) * weights * scale.unsqueeze(1)
        return graph
