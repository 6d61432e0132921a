"""Cross-validation: held-out predictions for every image, with all folds as one batch of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.evaluation.evaluate import adapted
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.machine.chunk import Chunk, at_a_time
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.tasks import TaskBatch

_LEAVE_ONE_OUT, _FOLDS = 20, 10


@dataclass(frozen=True)
class HeldOut:
    """Held-out logits of a candidate: those of each image without that image in training.

    Attributes:
        candidate: the candidate.
        logits: held-out logits, ``[M, N]``; NaN for images that were never held out.
        labels: labels, ``[M]``.
    """

    candidate: Candidate
    logits: Tensor
    labels: Tensor

    def __repr__(self) -> str:
        return f"HeldOut({self.describe()})"

    def describe(self) -> str:
        """Name and number of correctly classified images, as a sentence without its full stop."""
        right, count = int(self.right.sum()), int(self.known.sum())
        return f"{self.candidate.name}: {right} of {count} held-out images correct"

    @property
    def known(self) -> Tensor:
        """Which images were held out, ``[M]``: all except those that are alone in their class."""
        return self.logits.isfinite().all(1)

    @property
    def right(self) -> Tensor:
        """Whether the held-out prediction is correct, ``[M]``."""
        return (self.logits.argmax(1) == self.labels) & self.known

    def log_loss(self) -> Tensor:
        """Log-loss of each image at the best temperature, ``[M]``; NaN if it was not held out."""
        scaled = self.logits / temperature(self.logits[self.known], self.labels[self.known])
        return F.cross_entropy(scaled, self.labels, reduction="none")


def folds(labels: Tensor, seed: int = 0) -> list[Tensor]:
    """Rows of the images in each fold.

    Leave-one-out for up to 20 images, else 10 stratified folds. Images that are alone in their
    class are never held out, so that every class keeps an image.

    Args:
        labels: labels, ``[M]``.
        seed: seed of the assignment to folds.
    """
    # Not scikit-learn's StratifiedKFold: it fails if all classes have fewer images than folds.
    rng = np.random.default_rng(seed)
    counts = torch.bincount(labels)
    able = (counts[labels] > 1).nonzero().flatten()
    if len(able) <= _LEAVE_ONE_OUT:
        return [row.reshape(1) for row in able]
    place = torch.zeros(len(labels), dtype=torch.int64)
    for number in range(len(counts)):
        rows = (labels == number).nonzero().flatten()
        # A random first fold makes folds equally large if classes have fewer images than folds.
        start = int(rng.integers(_FOLDS))
        order = torch.from_numpy(rng.permutation(len(rows)))
        place[rows[order]] = (torch.arange(len(rows)) + start) % _FOLDS
    parts = [able[place[able] == fold] for fold in range(_FOLDS)]
    return [part for part in parts if len(part)]


def hold_out(
    candidate: Candidate,
    problem: SharedEncoder,
    features: Tensor,
    data: LabelledImages,
    parts: Sequence[Tensor],
) -> HeldOut:
    """Fine-tunes without each fold in turn and classifies the fold.

    Args:
        candidate: the way to fine-tune.
        problem: its inner problem.
        features: outputs of the problem's network for all images, ``[M, D]``.
        data: the M labelled images.
        parts: rows of each fold.
    """
    on_features, ways = problem.on_features(), len(data.class_names)
    logits = torch.full((len(data.labels), ways), torch.nan)
    device = features.device

    def answer(some: slice) -> None:
        batch = _as_tasks(features, data.labels, parts[some], ways)
        answers = adapted(on_features, batch, "support", candidate.inner)()
        for part, own in zip(parts[some], answers, strict=True):
            logits[part] = own[: len(part)].float()

    with torch.no_grad():
        if parts:
            size = at_a_time(lambda: answer(slice(1)), len(parts), device)
            Chunk(size, setting="", what="fold").run(answer, len(parts), device)
    return HeldOut(candidate, logits, data.labels)


def _as_tasks(features: Tensor, labels: Tensor, parts: Sequence[Tensor], ways: int) -> TaskBatch:
    """One task per fold: the fold is the query set, all other images the support set."""
    kept = []
    for part in parts:
        mask = torch.ones(len(labels), dtype=torch.bool)
        mask[part] = False
        kept.append(mask.nonzero().flatten())
    support, query = _padded(kept), _padded(parts)

    def gather(rows: Tensor) -> tuple[Tensor, Tensor]:
        real = rows >= 0
        x = features[rows.clamp(min=0)] * real.unsqueeze(2)
        return x, labels[rows.clamp(min=0)].masked_fill(~real, -1)

    classes = torch.arange(ways).expand(len(parts), ways)
    return TaskBatch(*gather(support), *gather(query), classes)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=-1)


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature, a divisor of the logits, that maximises the likelihood of the labels.

    It is found by a search on a logarithmic grid that is refined twice, which is precise enough for
    few images.

    Args:
        logits: logits, ``[M, N]``.
        labels: labels, ``[M]``; with M = 0 the temperature is 1.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 4.2.
    """
    if not len(labels):
        return 1.0
    low, high = math.log(1e-2), math.log(1e3)
    best = 0.0
    for _ in range(3):
        grid = torch.linspace(low, high, 41)
        losses = torch.stack([F.cross_entropy(logits / t.exp(), labels) for t in grid])
        best = float(grid[losses.argmin()])
        step = (high - low) / 40
        low, high = best - step, best + step
    return math.exp(best)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion, which is valid near 0 and 1 too.

    Args:
        share: the proportion, in [0, 1].
        count: number of samples.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    # Not scipy's binomtest: it takes integer counts; a proportion corrected for selection has none.
    z2 = 1.96**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = 1.96 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)
