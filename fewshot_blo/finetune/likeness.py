"""Detects images of none of the classes, and sets of classes that contain the true one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewshot_blo.finetune.cross_validation import HeldOut

LEVEL = 0.05
_USEFUL = 0.10
"""Share of strangers that must be found, twice that of known images that are flagged."""


@dataclass(frozen=True)
class Scores:
    """Scores of held-out images of known classes, to which those of new images are compared.

    Attributes:
        values: the scores, ascending, ``[A]``.
        weights: their weights, by which every class counts alike, ``[A]``; they sum to 1.
        images: number of different images among them.
    """

    values: Tensor
    weights: Tensor
    images: int

    def p_values(self, new: Tensor) -> Tensor:
        """Conformal p-values of new scores, of any shape; 1 if there are no held-out images.

        The p-value is the weight of held-out images whose score is at most that of the new image,
        which is counted as one of them.

        Source: Vovk et al., "Algorithmic Learning in a Random World" (2005).
        """
        if not self.images:
            return torch.ones_like(new)
        return ((self.below(new) * self.images + 1) / (self.images + 1)).to(new)

    def below(self, new: Tensor) -> Tensor:
        """Weight of the held-out images whose score is at most that of each new image."""
        total = torch.cat([self.weights.new_zeros(1), self.weights.cumsum(0)])
        return total[torch.searchsorted(self.values, new.contiguous(), right=True)]


def _nothing() -> Scores:
    return Scores(torch.zeros(0), torch.zeros(0, dtype=torch.float64), 0)


@dataclass(frozen=True)
class Known:
    """What held-out images of known classes look like, and how well strangers are told from them.

    Attributes:
        evidence: ``log Σ_n exp(logit_n)`` of held-out images.
        truth: probability of their true class.
        flagged: share of held-out images of known classes that are flagged.
        found: share of strangers that are flagged, where each class in turn was left out and played
            the stranger; None if this was not measured.
        auroc: probability that a stranger has less evidence than a known image; None likewise.
    """

    evidence: Scores = field(default_factory=_nothing)
    truth: Scores = field(default_factory=_nothing)
    flagged: float = 0.0
    found: float | None = None
    auroc: float | None = None

    @property
    def detects(self) -> bool:
        """Whether strangers are flagged: not if fewer than 10 % of them would be found."""
        return self.found is not None and self.found >= _USEFUL

    def is_known(self, p: Tensor) -> Tensor:
        """Whether images with these p-values are of known classes; all are if nothing is detected.

        An image is flagged if less than 5 % of the held-out images have as little evidence.

        Args:
            p: p-values of their evidence.
        """
        return (p >= _threshold(self.evidence)) | (not self.detects)

    def describe(self) -> str:
        """The power against strangers, as a sentence without its full stop."""
        if self.found is None:
            return (
                "images of none of the classes are not detected: this needs at least three classes "
                "and two images of a class, on which the detection can be tested"
            )
        rates = (
            f"{100 * self.flagged:.0f} % of images of known classes and {100 * self.found:.0f} % "
            "of images of others"
        )
        if not self.detects:
            return (
                "images of none of the classes are not detected, because they cannot be told from "
                f"the others: a threshold would flag about {rates}; more images a class help"
            )
        return f"'none of these' flags about {rates}"

    def sets(self, probabilities: Tensor, coverage: float) -> Tensor:
        """Which classes belong to the prediction set of each image, ``[M, N]``.

        The true class of new images is in the set with about this probability if all classes are
        equally frequent. The most likely class is always in the set.

        Args:
            probabilities: probabilities of M images, ``[M, N]``.
            coverage: the probability, in (0, 1).

        Source: Sadinle, Lei & Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error
        Levels" (arXiv 1609.00451).
        """
        inside = self.truth.p_values(probabilities) > 1 - coverage
        return inside | (probabilities == probabilities.amax(1, keepdim=True))


def known_images(held_out: HeldOut) -> Known:
    """What the answers of the selected candidate say about known images and strangers."""
    asked, scaled = held_out.asked, held_out.scaled
    known = ~asked.strange
    if not known.any():
        return Known()
    weights, images = asked.weights[known], len(asked.rows[known].unique())
    evidence = scaled.logsumexp(1)
    chances = scaled[known].softmax(1).gather(1, asked.labels[known].unsqueeze(1)).squeeze(1)
    scores = _sorted(evidence[known], weights, images)
    truth = _sorted(chances, weights, images)
    limit = _threshold(scores)
    # A held-out image is among those to which it is compared.
    flagged = float(weights @ (scores.below(evidence[known]) <= LEVEL).double())
    if known.all():
        return Known(scores, truth, flagged)
    # Every class counts alike among the strangers too.
    share = 1 / torch.bincount(asked.absent[~known])[asked.absent[~known]].double()
    share = share / share.sum()
    # The evidence of strangers lacks one of N exchangeable terms.
    ways = scaled.shape[1]
    strange = evidence[~known] + math.log(ways / (ways - 1))
    found = float(share @ (scores.p_values(strange) < limit).double())
    differences = evidence[known].unsqueeze(1) - strange
    above = (differences > 0).double() + 0.5 * (differences == 0).double()
    return Known(scores, truth, flagged, found, float(weights @ above @ share))


def _threshold(scores: Scores) -> float:
    """The p-value at which 5 % of the held-out images lie below."""
    return (LEVEL * scores.images + 1) / (scores.images + 1)


def _sorted(values: Tensor, weights: Tensor, images: int) -> Scores:
    order = values.argsort()
    return Scores(values[order], weights[order], images)
