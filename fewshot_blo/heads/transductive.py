"""``TransductiveHead``: base class of heads that classify all queries of a task jointly."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import SupportSetHead

_ABSENT = -1e4
"""Logit of a class without a support row: a probability of 0, and a finite number."""
_TINY = 1e-30


@dataclass(frozen=True)
class Rows:
    """Support and query rows of T tasks.

    Attributes:
        support: support features, ``[T, S, D]``.
        labels: their one-hot labels, ``[T, S, N]``; zero for a padded row.
        queries: query features, ``[T, B, D]``.
        real: 1 for the queries that exist and 0 for padded ones, ``[T, B]``.
    """

    support: Tensor
    labels: Tensor
    queries: Tensor
    real: Tensor

    @cached_property
    def known(self) -> Tensor:
        """1 for the support rows that exist, ``[T, S]``."""
        return self.labels.detach().sum(2)

    @cached_property
    def present(self) -> Tensor:
        """Which classes have a support row, ``[T, 1, N]``."""
        return self.labels.detach().sum(1, keepdim=True) > 0

    @property
    def all(self) -> Tensor:
        """Support features, then query features, ``[T, S + B, D]``."""
        return torch.cat([self.support, self.queries], 1)

    @property
    def class_means(self) -> Tensor:
        """Mean support feature of each class, ``[T, N, D]``; zero without a support row."""
        return weighted_means(self.labels, self.support)

    def means(self, assigned: Tensor) -> Tensor:
        """Class means over the support set and the queries, ``[T, N, D]``.

        Args:
            assigned: to which classes the queries belong, ``[T, B, N]``.
        """
        assigned = assigned * self.real.unsqueeze(2)
        return weighted_means(torch.cat([self.labels, assigned], 1), self.all)

    def log_softmax(self, scores: Tensor) -> Tensor:
        """Log probabilities over the classes with a support row; -inf for the others."""
        return scores.masked_fill(~self.present, -torch.inf).log_softmax(2)

    def softmax(self, scores: Tensor) -> Tensor:
        """Probabilities over the classes with a support row, zero for the others."""
        return scores.masked_fill(~self.present, -torch.inf).softmax(2)


def weighted_means(weights: Tensor, x: Tensor) -> Tensor:
    """``Σ_i w_in x_i / Σ_i w_in``, ``[T, N, D]``, of ``[T, R, N]`` and ``[T, R, D]``."""
    total = weights.sum(1).clamp(min=_TINY)
    return weights.transpose(1, 2) @ x / total.unsqueeze(2)


def row_mean(x: Tensor, counted: Tensor) -> Tensor:
    """Mean row ``[T, 1, D]`` of ``[T, R, D]`` over the rows that are counted, ``[T, R]``."""
    return weighted_means(counted.unsqueeze(2), x)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|²``, ``[T, R, S]``, of ``[T, R, D]`` and ``[T, S, D]``."""
    squares = x.square().sum(2).unsqueeze(2) + y.square().sum(2).unsqueeze(1)
    return squares - 2 * x @ y.transpose(1, 2)


class TransductiveHead(SupportSetHead):
    """A head whose predictions for a query depend on the other queries of its task.

    There is nothing to adapt to the support set alone: its parameters are the support set. All
    queries of a task have to be classified together, in every norm mode.
    """

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Logits ``[T, B, N]``; -1e4 for a class without a support row."""
        del learned
        exist = torch.ones_like(features[..., 0]) if real is None else real.to(features.dtype)
        rows = Rows(params["head.support"], params["head.labels"], features, exist)
        return self.scores(rows).masked_fill(~rows.present, _ABSENT)

    @abstractmethod
    def scores(self, rows: Rows) -> Tensor:
        """Logits ``[T, B, N]``; those of classes without a support row are not used."""
