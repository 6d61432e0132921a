"""How well queries of unknown classes are told apart from those of a task's classes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.objectives.metric import Metric
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Above, AtMost
from fewshot_blo.tasks.batch import UNKNOWN

Score = Literal["probability", "logit", "energy"]


@dataclass(frozen=True)
class OpenSetMetric(Metric):
    """Of queries with the label ``UNKNOWN`` among others, as ``OpenSet`` tasks have them.

    Attributes:
        score: what is high for known queries: the largest probability (Hendrycks and Gimpel, 2017),
            the largest logit, or the energy, which is the logarithm of the sum of the exponentials
            (Liu et al., 2020).
    """

    higher_is_better: ClassVar[bool] = True
    percent: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True

    score: Score = "probability"

    @property
    def name(self) -> str:
        """Name in tables, with the score unless it is the usual one."""
        return self._of_what if self.score == "probability" else f"{self._of_what} ({self.score})"

    @property
    def _of_what(self) -> str:
        return type(self).__name__

    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """Of logits ``[T, B, N]`` and labels ``[T, B]``; float64.

        Raises:
            ConfigurationError: if a task has no known or no unknown queries.
        """
        logits = outputs.double()
        known, unknown = rows & (targets >= 0), rows & (targets == UNKNOWN)
        if not bool((known.any(1) & unknown.any(1)).all()):
            raise ConfigurationError(
                f"{self.name} needs queries of known and of unknown classes in each task: draw "
                "tasks with the protocol OpenSet"
            )
        scores = {
            "probability": lambda: logits.softmax(-1).amax(-1),
            "logit": lambda: logits.amax(-1),
            "energy": lambda: logits.logsumexp(-1),
        }[self.score]()
        return self._of(scores, known, unknown, rows & (logits.argmax(-1) == targets))

    @abstractmethod
    def _of(self, scores: Tensor, known: Tensor, unknown: Tensor, right: Tensor) -> Tensor:
        """The metric ``[T]`` of scores; which rows are known, unknown and classified right."""


@checked
@dataclass(frozen=True)
class AUROC(OpenSetMetric):
    """Probability that a known query has a higher score than an unknown one; ties count half.

    Attributes:
        score: what is high for known queries: the largest probability, the largest logit, or the
            energy, as in ``OpenSetMetric``.
    """

    def _of(self, scores: Tensor, known: Tensor, unknown: Tensor, right: Tensor) -> Tensor:
        below = (_number(scores, unknown, strictly=True) + _number(scores, unknown)) / 2
        pairs = known.sum(1) * unknown.sum(1)
        return torch.where(known, below, 0).sum(1) / pairs


@checked
@dataclass(frozen=True)
class AUPR(OpenSetMetric):
    """Average precision of finding the unknown queries by their low scores.

    It is the mean, over unknown queries, of the share of unknown ones among all queries whose score
    is at most theirs; it depends on the share of unknown queries, unlike ``AUROC``.

    Attributes:
        score: what is high for known queries: the largest probability, the largest logit, or the
            energy, as in ``OpenSetMetric``.
    """

    def _of(self, scores: Tensor, known: Tensor, unknown: Tensor, right: Tensor) -> Tensor:
        found = _number(scores, unknown)
        precision = found / (found + _number(scores, known)).clamp(min=1)
        return torch.where(unknown, precision, 0).sum(1) / unknown.sum(1)


@checked
@dataclass(frozen=True)
class OpenSetAccuracy(OpenSetMetric):
    """Accuracy over all queries with a threshold that accepts 95 % of the known ones.

    A known query is right if it is accepted and its class is right, an unknown one if it is
    rejected. The threshold comes from the task's own known queries, so this measures the separation
    of scores, and not a threshold that could be used without their labels.

    Attributes:
        score: what is high for known queries: the largest probability, the largest logit, or the
            energy, as in ``OpenSetMetric``.
        accepted: share of the known queries that are accepted, at least.
    """

    accepted: Annotated[float, Above(0), AtMost(1)] = 0.95

    @property
    def _of_what(self) -> str:
        return f"accuracy at {100 * self.accepted:g} % of known"

    def _of(self, scores: Tensor, known: Tensor, unknown: Tensor, right: Tensor) -> Tensor:
        descending = torch.where(known, scores, -torch.inf).sort(1, descending=True).values
        # Rounded first: 0.95 * 20 is 19, not a little more.
        place = (known.sum(1) * self.accepted - 1e-9).ceil().long() - 1
        accept = scores >= descending.gather(1, place[:, None])
        correct = (right & known & accept) | (unknown & ~accept)
        return correct.sum(1).double() / (known | unknown).sum(1)


def _number(scores: Tensor, among: Tensor, *, strictly: bool = False) -> Tensor:
    """How many of some rows have at most, or strictly below, each row's score, ``[T, B]``."""
    ascending = torch.where(among, scores, torch.inf).sort(1).values
    return torch.searchsorted(ascending, scores, right=not strictly).double()
