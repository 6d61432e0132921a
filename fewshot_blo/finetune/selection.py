"""Choosing among candidates, and how good the choice is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.finetune.cross_validation import HeldOut, wilson

_SAMPLES = 1000


@dataclass(frozen=True)
class Selection:
    """The candidate that was chosen.

    Attributes:
        held_out: of all candidates.
        chosen: its place among them.
        accuracy: that the way of choosing leads to; None where no image could be held out.
        count: number of images that were held out.
        reason: why it was chosen, as a sentence.
    """

    held_out: tuple[HeldOut, ...]
    chosen: int
    accuracy: float | None
    count: int
    reason: str

    def __repr__(self) -> str:
        name = self.held_out[self.chosen].candidate.name
        return f"Selection('{name}' of {len(self.held_out)} candidates, {self.describe()})"

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the accuracy."""
        return None if self.accuracy is None else wilson(self.accuracy, self.count)

    def describe(self) -> str:
        """The accuracy to expect, as a sentence without its full stop."""
        if self.accuracy is None or self.interval is None:
            return "accuracy not measured: give every class two images or more"
        low, high = self.interval
        return (
            f"accuracy on held-out images {100 * self.accuracy:.1f} % (95 % interval "
            f"{100 * low:.0f} to {100 * high:.0f} %, {self.count} images, corrected for the choice "
            "among candidates)"
        )


def select(held_out: Sequence[HeldOut]) -> Selection:
    """The candidate with most held-out images right; of equals that with the lowest log-loss.

    The figure of the best of many is too good. So the choice is made again on resampled images, and
    what it says of the images left out of the sample is counted.

    Source: Tsamardinos, Greasidou & Borboudakis, "Bootstrapping the out-of-sample predictions for
    efficient and accurate cross-validation" (Machine Learning, 2018), the BBC-CV estimate.
    """
    held_out = tuple(held_out)
    known = held_out[0].known
    count = int(known.sum())
    if not count:
        reason = "every class has a single image, so no accuracy can be measured: the simplest"
        return Selection(held_out, 0, None, 0, reason)
    right = torch.stack([h.right[known] for h in held_out]).double()
    loss = torch.stack([h.log_loss()[known] for h in held_out]).double()
    chosen = int(_score(right.sum(1), loss.sum(1)).argmax())
    best, name = int(right[chosen].sum()), held_out[chosen].candidate.name
    reason = f"'{name}' gets {best} of {count} held-out images right"
    equals = int((right.sum(1) == best).sum()) - 1
    if equals:
        reason += f", as {equals} other{'s' if equals > 1 else ''} do{'' if equals > 1 else 'es'}"
        reason += ", with the lowest log-loss of them"
    return Selection(held_out, chosen, _estimate(right, loss), count, reason)


def _estimate(right: Tensor, loss: Tensor) -> float:
    """Mean accuracy, on images outside of a sample, of the candidate that the sample chooses.

    Args:
        right: whether each candidate gets each image right, ``[candidates, images]``.
        loss: its log-loss, ``[candidates, images]``.
    """
    count = right.shape[1]
    if len(right) == 1:
        return float(right.mean())
    drawn = torch.randint(count, (_SAMPLES, count), generator=torch.Generator().manual_seed(0))
    times = torch.zeros(_SAMPLES, count, dtype=right.dtype)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    chosen = _score(right @ times.T, loss @ times.T).argmax(0)
    outside = (times == 0).to(right.dtype)
    return float((right[chosen] * outside).sum() / outside.sum())


def _score(right: Tensor, loss: Tensor) -> Tensor:
    """Orders by the first, and equals by the second: losses come to less than one image."""
    spread = (loss - loss.amin(0)) / (loss.amax(0) - loss.amin(0) + 1)
    return right - 0.5 * spread
