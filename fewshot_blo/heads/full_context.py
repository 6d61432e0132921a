"""Matching Networks with full context embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.head import SupportSet
from fewshot_blo.heads.matching import MatchingHead
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting


@checked
@dataclass(frozen=True)
class FullContextHead(MatchingHead):
    """Matching Networks with full context embeddings: g of support images, f of queries.

    ``g(x_i) = x_i + forward LSTM_i + backward LSTM_i`` over the support set in its order. A query
    reads the support set K times: with an LSTM of input x and state ``[h, r]``,
    ``h ← LSTM(x, [h, r]) + x`` and ``r ← Σ_i softmax_i(h·g(x_i)) g(x_i)``; f(x) is the last h. The
    LSTMs are outer variables.

    Source: Vinyals et al., "Matching Networks" (arXiv 1606.04080), appendices A.1 and A.2.

    Attributes:
        scale: s, factor of the cosines, an inverse temperature.
        steps: K, number of attention steps of a query over the support set.

    Raises:
        ConfigurationError: if the number of steps is not positive.
    """

    steps: Counting = 5

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """Weights of the three LSTMs, uniform in ±1/√D.

        Raises:
            ConfigurationError: if the number of features is not given.
        """
        if features is None:
            raise ConfigurationError("FullContextHead needs features, the number of features D")
        states = {"forward": features, "backward": features, "query": 2 * features}
        shapes = {
            f"{name}.{part}": shape
            for name, state in states.items()
            for part, shape in (
                ("of_input", (4 * features, features)),
                ("of_state", (4 * features, state)),
                ("bias", (4 * features,)),
            )
        }
        bound = features**-0.5
        return {name: torch.empty(shape).uniform_(-bound, bound) for name, shape in shapes.items()}

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """g of the support set."""
        x, rows = support.features, range(support.features.shape[1])
        real = support.labels >= 0
        ahead = _over_rows(x, real, rows, learned, "forward")
        back = _over_rows(x, real, reversed(rows), learned, "backward")
        return {"head.support": x + ahead + back, "head.labels": support.one_hot}

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Unnormalised log probabilities, ``[T, B, N]``: attention of f of the queries."""
        support = params["head.support"]
        padded = (params["head.labels"].sum(2) == 0).unsqueeze(1)
        h = read = c = torch.zeros_like(features)
        for _ in range(self.steps):
            h, c = _lstm(features, torch.cat([h, read], -1), c, learned, "query")
            h = h + features
            attention = (h @ support.transpose(1, 2)).masked_fill(padded, -torch.inf).softmax(2)
            read = attention @ support
        return super().logits(params, h, learned, real)


def _over_rows(x: Tensor, real: Tensor, order: Iterable[int], learned: Params, name: str) -> Tensor:
    """States of an LSTM at each row of ``[T, N*K, D]``; padded rows do not change its state."""
    h = c = torch.zeros_like(x[:, 0])
    states: dict[int, Tensor] = {}
    for row in order:
        following = _lstm(x[:, row], h, c, learned, name)
        h, c = (
            torch.where(real[:, row, None], new, old)
            for new, old in zip(following, (h, c), strict=True)
        )
        states[row] = h
    return torch.stack([states[row] for row in range(x.shape[1])], 1)


def _lstm(
    x: Tensor, state: Tensor, cell: Tensor, learned: Params, name: str
) -> tuple[Tensor, Tensor]:
    """Output and cell state of one LSTM step, ``[..., D]`` each."""
    gates = x @ learned[f"{name}.of_input"].T + state @ learned[f"{name}.of_state"].T
    into, keep, candidate, out = (gates + learned[f"{name}.bias"]).chunk(4, -1)
    cell = keep.sigmoid() * cell + into.sigmoid() * candidate.tanh()
    return out.sigmoid() * cell.tanh(), cell
