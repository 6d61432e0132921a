"""Selects a candidate by cross-validation, and estimates the accuracy corrected for selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.finetune.cross_validation import HeldOut, wilson

_SAMPLES = 1000


@dataclass(frozen=True)
class Selection:
    """The selected candidate and its expected accuracy.

    Attributes:
        held_out: held-out predictions of all candidates.
        chosen: index of the selected candidate.
        accuracy: expected accuracy, corrected for the selection; None if no image could be held
            out.
        count: number of images that were held out.
        reason: why the candidate was selected, as a sentence without its full stop.
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
        """95 % confidence interval of the accuracy."""
        return None if self.accuracy is None else wilson(self.accuracy, self.count)

    def describe(self) -> str:
        """The expected accuracy, as a sentence without its full stop."""
        if self.accuracy is None or self.interval is None:
            return "accuracy not measured, because no class has two images: add images"
        low, high = self.interval
        return (
            f"accuracy on held-out images {100 * self.accuracy:.1f} % (95 % interval "
            f"{100 * low:.0f} to {100 * high:.0f} %, {self.count} images, corrected for the "
            "selection among candidates)"
        )


def select(held_out: Sequence[HeldOut]) -> Selection:
    """Selects the candidate with most correct held-out images; ties by the lowest log-loss.

    The cross-validated accuracy of the best of several candidates is biased upwards. The selection
    is therefore repeated on bootstrap samples, and the accuracy is that on the images outside of
    each sample.

    Source: Tsamardinos, Greasidou & Borboudakis, "Bootstrapping the out-of-sample predictions for
    efficient and accurate cross-validation" (Machine Learning, 2018), the BBC-CV estimate.
    """
    held_out = tuple(held_out)
    known = held_out[0].known
    count = int(known.sum())
    if not count:
        reason = "the simplest candidate, because no class has two images to compare candidates on"
        return Selection(held_out, 0, None, 0, reason)
    right = torch.stack([h.right[known] for h in held_out]).double()
    loss = torch.stack([h.log_loss()[known] for h in held_out]).double()
    chosen = int(_score(right.sum(1), loss.sum(1)).argmax())
    best, name = int(right[chosen].sum()), held_out[chosen].candidate.name
    reason = f"'{name}' classifies {best} of {count} held-out images correctly"
    equals = int((right.sum(1) == best).sum()) - 1
    if equals:
        reason += f", as {equals} other{'s' if equals > 1 else ''} do{'' if equals > 1 else 'es'}"
        reason += ", and has the lowest log-loss of them"
    return Selection(held_out, chosen, _estimate(right, loss), count, reason)


def _estimate(right: Tensor, loss: Tensor) -> float:
    """Mean accuracy on images outside of a bootstrap sample of the candidate it selects.

    Args:
        right: whether each candidate classifies each image correctly, ``[candidates, images]``.
        loss: log-loss of each candidate and image, ``[candidates, images]``.
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
    """A score that orders candidates by ``right`` and ties by ``loss``, which adds less than 1."""
    spread = (loss - loss.amin(0)) / (loss.amax(0) - loss.amin(0) + 1)
    return right - 0.5 * spread
