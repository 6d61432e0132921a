"""Selects a candidate by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fewshot_blo.finetune.cross_validation import HeldOut
from fewshot_blo.finetune.likeness import Known, known_images
from fewshot_blo.finetune.promise import Promise, promise

_HALVES = 200


@dataclass(frozen=True)
class Selection:
    """The selected candidate, its expected accuracy and its power against strangers.

    Attributes:
        held_out: held-out answers of all candidates.
        chosen: index of the selected candidate.
        promise: accuracy to expect on new images.
        known: what held-out images of known classes look like, and how many strangers are found.
        reason: why the candidate was selected, as a sentence without its full stop.
    """

    held_out: tuple[HeldOut, ...]
    chosen: int
    promise: Promise
    known: Known
    reason: str

    def __repr__(self) -> str:
        name = self.best.candidate.name
        return f"Selection('{name}' of {len(self.held_out)} candidates, {self.describe()})"

    @property
    def best(self) -> HeldOut:
        """Held-out answers of the selected candidate."""
        return self.held_out[self.chosen]

    @property
    def accuracy(self) -> float | None:
        """Expected accuracy, where every class counts alike; None if nothing could be held out."""
        return self.promise.accuracy

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the accuracy."""
        return self.promise.interval

    @property
    def count(self) -> int:
        """Number of images that were held out."""
        return self.promise.count

    def describe(self) -> str:
        """The expected accuracy, as a sentence without its full stop."""
        return self.promise.describe()


def select(held_out: Sequence[HeldOut]) -> Selection:
    """Selects the candidate with the lowest log-loss, where every class counts alike.

    The log-loss of a few answers tells candidates apart better than the number of correct ones.
    """
    held_out = tuple(held_out)
    if not len(held_out[0].answers):
        reason = "the simplest candidate, because no class has two images to compare candidates on"
        chosen = 0
    else:
        losses = [h.loss for h in held_out]
        chosen = min(range(len(losses)), key=losses.__getitem__)
        best = held_out[chosen]
        reason = (
            f"'{best.candidate.name}' has the lowest log-loss on held-out images, {best.loss:.3f}, "
            "where every class counts alike"
        )
    best = held_out[chosen]
    promised = promise(best, _optimism(held_out))
    return Selection(held_out, chosen, promised, known_images(best), reason)


def _optimism(held_out: Sequence[HeldOut]) -> float:
    """By how much the held-out accuracy of the selected candidate exceeds its own, on average.

    The selection is repeated on random halves of the images, and the other half says how accurate
    the selected candidate is. Twice as many images reduce the difference by a factor of √2.
    """
    if len(held_out) == 1:
        return 0.0
    asked = held_out[0].asked
    weights = asked.weights
    generator = torch.Generator().manual_seed(0)
    # Each split and its mirror image, so that halves of unequal difficulty cancel.
    split = torch.rand(_HALVES // 2, len(asked.classes), generator=generator)
    inside = (split < split.median(1, keepdim=True).values)[:, asked.rows]
    halves = torch.cat([inside, ~inside]).double() * weights
    others = weights - halves
    losses = torch.stack([h.losses for h in held_out]) @ halves.T
    right = torch.stack([h.correct for h in held_out])
    chosen = losses.argmin(0)
    here, there = ((right[chosen] * part).sum(1) / part.sum(1) for part in (halves, others))
    gap = float((here - there).nanmean())
    return max(gap, 0.0) / 2**0.5
