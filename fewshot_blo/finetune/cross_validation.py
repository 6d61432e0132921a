"""Cross-validation: answers of a candidate to all plays, as one batch of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.evaluation.evaluate import adapted
from fewshot_blo.finetune.calibration import Scale, fit_scale
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.plays import Play, Questions
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.machine.chunk import Chunk, at_a_time
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.tasks import TaskBatch


@dataclass(frozen=True)
class HeldOut:
    """Answers of a candidate about images that were not in its training set.

    Attributes:
        candidate: the candidate.
        answers: logits of each question, ``[A, N]``; minus infinity for a class that was absent.
        asked: the questions.
        scale: temperature and correction for the sizes of classes, fitted to the answers.
    """

    candidate: Candidate
    answers: Tensor
    asked: Questions
    scale: Scale

    def __repr__(self) -> str:
        return f"HeldOut({self.describe()})"

    def describe(self) -> str:
        """Name and class-balanced accuracy, as a sentence without its full stop."""
        if not len(self.answers):
            return f"{self.candidate.name}: no image held out"
        return (
            f"{self.candidate.name}: {100 * self.accuracy:.1f} % of held-out images correct, "
            f"classes counting alike (log-loss {self.loss:.3f})"
        )

    @property
    def scaled(self) -> Tensor:
        """Logits after scaling, ``[A, N]``: their softmax is the probabilities."""
        return self.scale.apply(self.answers, self.asked.kept)

    @cached_property
    def correct(self) -> Tensor:
        """Whether each answer is correct, as 0 or 1, ``[A]``; 0 for strangers."""
        return (self.scaled.argmax(1) == self.asked.labels).double()

    @cached_property
    def losses(self) -> Tensor:
        """Log-loss of each answer, ``[A]``; 0 for strangers."""
        found = F.cross_entropy(self.scaled.double(), self.asked.labels, reduction="none")
        return found.masked_fill(self.asked.strange, 0.0)

    @property
    def accuracy(self) -> float:
        """Share of correct answers, where every class counts alike."""
        return float(self.asked.weights @ self.correct)

    @property
    def loss(self) -> float:
        """Log-loss of the answers, where every class counts alike."""
        return float(self.asked.weights @ self.losses)

    @property
    def labels(self) -> Tensor:
        """Labels of the images, ``[M]``."""
        return self.asked.classes

    @cached_property
    def logits(self) -> Tensor:
        """Logits of each image without it in training, ``[M, N]``; NaN if it was never held out.

        Divided by the temperature they are those of the probabilities. They are the mean over the
        folds that hold out the image.
        """
        own = self.asked.own
        rows, images = self.asked.rows[own], len(self.labels)
        total = self.answers.new_zeros(images, self.answers.shape[1])
        total.index_add_(0, rows, self.scaled[own] * self.scale.temperature)
        return total / torch.bincount(rows, minlength=images).unsqueeze(1)

    @property
    def known(self) -> Tensor:
        """Which images were held out, ``[M]``: all except those that are alone in their class."""
        return self.logits.isfinite().all(1)

    @property
    def right(self) -> Tensor:
        """Whether the held-out prediction of an image is correct, ``[M]``."""
        return (self.logits.argmax(1) == self.labels) & self.known

    def log_loss(self) -> Tensor:
        """Log-loss of each image, ``[M]``; NaN if it was not held out."""
        scaled = self.logits / self.scale.temperature
        return F.cross_entropy(scaled, self.labels, reduction="none")


def hold_out(
    candidate: Candidate,
    problem: SharedEncoder,
    features: Tensor,
    labels: Tensor,
    parts: Sequence[Play],
    asked: Questions,
) -> HeldOut:
    """Fine-tunes on the training set of each play and classifies the images that it asks about.

    Args:
        candidate: the way to fine-tune.
        problem: its inner problem.
        features: outputs of the problem's network for all images, ``[M, D]``.
        labels: their labels, ``[M]``.
        parts: the plays.
        asked: their questions.
    """
    ways, device = int(labels.max()) + 1, features.device

    def answer(some: slice) -> Tensor:
        return adapt_to(problem, features, labels, parts[some], candidate.inner)

    logits = torch.zeros(0, ways)
    with torch.no_grad():
        if parts:
            size = at_a_time(lambda: answer(slice(1)), len(parts), device)
            chunk = Chunk(size, setting="", what="play")
            logits = torch.cat(list(chunk.run(answer, len(parts), device)))
    strange = asked.strange.nonzero().flatten()
    logits[strange, asked.absent[strange]] = -torch.inf
    return HeldOut(candidate, logits, asked, fit_scale(logits, asked, candidate.temperature))


def adapt_to(
    problem: SharedEncoder,
    features: Tensor,
    labels: Tensor,
    parts: Sequence[Play],
    inner: InnerSteps,
) -> Tensor:
    """Logits of the questions of some plays, ``[A, N]``; arguments as in ``hold_out``.

    Args:
        problem, features, labels, parts: as there.
        inner: the inner steps.
    """
    batch = _as_tasks(features, labels, parts, int(labels.max()) + 1)
    answers = adapted(problem.on_features(), batch, "support", inner)()
    pairs = zip(parts, answers, strict=True)
    return torch.cat([own[: len(play.asked)].float().cpu() for play, own in pairs])


def _as_tasks(features: Tensor, labels: Tensor, parts: Sequence[Play], ways: int) -> TaskBatch:
    """One task per play: the images asked about are the query set."""
    support = _padded([play.kept for play in parts])
    query = _padded([play.asked for play in parts])

    def gather(rows: Tensor) -> tuple[Tensor, Tensor]:
        real = rows >= 0
        x = features[rows.clamp(min=0)] * real.unsqueeze(2)
        return x, labels[rows.clamp(min=0)].masked_fill(~real, -1)

    classes = torch.arange(ways).expand(len(parts), ways)
    return TaskBatch(*gather(support), *gather(query), classes)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=-1)
