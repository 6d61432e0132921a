"""Detects images of none of the classes, and sets of classes that contain the true one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewshot_blo.finetune.calibration import size_level
from fewshot_blo.finetune.cross_validation import HeldOut
from fewshot_blo.finetune.plays import Questions
from fewshot_blo.finetune.proportion import wilson

LEVEL = 0.05
_USEFUL = 0.10
"""Share of strangers that must be found, twice that of known images that are flagged."""
_LEAST = 15
"""Number of held-out images from which on a threshold is set: with fewer, an image that is less
like the classes than all of them is still one of more than 6 %."""
_TYPICAL = 0.25
"""Share of strangers to expect, worth that of one class."""
_WORTH = 0.7
"""Number of independent answers that the strangers of one class are worth: their classes differ."""


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
        found: share of strangers that are flagged, from each class in turn, which was left out and
            played the stranger, and drawn to 25 % as by one more class; None if not measured.
        auroc: probability that a stranger has less evidence than a known image; None likewise.
        left_out: number of classes that played the stranger; 0 if not known, as in older files.
    """

    evidence: Scores = field(default_factory=_nothing)
    truth: Scores = field(default_factory=_nothing)
    flagged: float = 0.0
    found: float | None = None
    auroc: float | None = None
    left_out: int = 0

    @property
    def detects(self) -> bool:
        """Whether strangers are flagged.

        They are not if fewer than 10 % of them would be found, or from fewer than 15 held-out
        images, too few for a threshold.
        """
        return self.found is not None and self.found >= _USEFUL and self.evidence.images >= _LEAST

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the share of strangers that are flagged; None if it was not measured."""
        if self.found is None or not self.left_out:
            return None
        return wilson(self.found, _WORTH * self.left_out)

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
        images = self.evidence.images
        if images < _LEAST:
            return (
                "images of none of the classes are not detected: a threshold needs at least "
                f"{_LEAST} held-out images, and there are {images}; more images a class help"
            )
        rates = (
            f"{100 * self.flagged:.0f} % of images of known classes and {100 * self.found:.0f} % "
            "of images of others"
        )
        if self.interval:
            low, high = self.interval
            rates += f" (95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
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
    asked, scaled = held_out.asked, held_out.scaled.double()
    known, strangers = asked.judged, asked.strange
    if not known.any():
        return Known()
    weights, images = asked.weights[known], len(asked.rows[known].unique())
    chances = scaled[known].softmax(1).gather(1, asked.labels[known].unsqueeze(1)).squeeze(1)
    truth = _sorted(chances, weights, images)
    # Corrections for sizes have mean zero over the classes of a play, whose sizes are others.
    levels = size_level(asked.kept) - size_level(asked.counts)
    evidence = scaled.logsumexp(1) + held_out.scale.offset * levels
    own = (evidence + _gain(evidence, asked))[known]
    scores = _sorted(own, weights, images)
    # A held-out image is among those to which it is compared.
    flagged = float(weights @ (scores.below(own) <= LEVEL).double())
    if not strangers.any():
        return Known(scores, truth, flagged)
    # Every class counts alike among the strangers too.
    left_out = asked.absent[strangers]
    share = 1 / torch.bincount(left_out)[left_out].double()
    share = share / share.sum()
    # The evidence of strangers lacks one of N exchangeable terms.
    ways = scaled.shape[1]
    strange = evidence[strangers] + math.log(ways / (ways - 1))
    seen = float(share @ (scores.p_values(strange) < _threshold(scores)).double())
    found = (ways * seen + _TYPICAL) / (ways + 1)
    differences = own.unsqueeze(1) - strange
    above = (differences > 0).double() + 0.5 * (differences == 0).double()
    return Known(scores, truth, flagged, found, float(weights @ above @ share), ways)


def _gain(evidence: Tensor, asked: Questions) -> Tensor:
    """What each answer's evidence gains by training on all images of its class, ``[A]``.

    The gain is proportional to the logarithm of the number of images, as measured from halves to
    folds on the same images, where every class counts alike.
    """
    kept = asked.kept.gather(1, asked.labels.unsqueeze(1)).squeeze(1).double()
    own, logs, images = asked.own, kept.log(), len(asked.classes)

    def means(values: Tensor, which: Tensor) -> Tensor:
        total = values.new_zeros(images).index_add(0, asked.rows[which], values[which])
        return total / torch.bincount(asked.rows[which], minlength=images)

    more = means(evidence, own) - means(evidence, asked.half)
    ratios = means(logs, own) - means(logs, asked.half)
    both = more.isfinite() & ratios.isfinite()
    share = 1 / torch.bincount(asked.classes)[asked.classes].double()
    ratio = float(share[both] @ ratios[both])
    slope = float(share[both] @ more[both]) / ratio if ratio > 1e-6 else 0.0
    # Reduced classes stand for a class of their size.
    return slope * (asked.counts[asked.labels].log() - logs).masked_fill(~own, 0.0)


def _threshold(scores: Scores) -> float:
    """The p-value at which 5 % of the held-out images lie below."""
    return (LEVEL * scores.images + 1) / (scores.images + 1)


def _sorted(values: Tensor, weights: Tensor, images: int) -> Scores:
    order = values.argsort()
    return Scores(values[order].float(), weights[order], images)
