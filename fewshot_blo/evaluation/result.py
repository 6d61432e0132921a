"""What an evaluation found, and under which protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.losses import mask_classes
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.networks.views import COUNT, Views
from fewshot_blo.problems import NormMode
from fewshot_blo.tasks import TaskBatch


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on a number of tasks, and the protocol it was measured under.

    Attributes:
        norm: norm mode.
        episodes: way, shot, queries a class and seed, as words for a table.
        steps: inner steps.
        accuracy: of each task, ``[tasks]``, float64 in [0, 1].
        class_names: the classes that were drawn, C of them.
        confusion: queries of each class (row) that were taken for each class, ``[C, C]``.
        calibration_error: expected calibration error: the mean over all queries of the distance
            between confidence and accuracy, each a mean over its one of 15 intervals of confidence
            (Guo et al., arXiv 1706.04599, equation 3).
        precision: of the network's products.
        views: of an image, over which features are averaged.
    """

    norm: NormMode
    episodes: str
    steps: int
    accuracy: Tensor
    class_names: Sequence[str]
    confusion: Tensor
    calibration_error: float = math.nan
    precision: Precision = "float32"
    views: Views = "one"

    @property
    def class_accuracy(self) -> Tensor:
        """Accuracy over all queries of each class, ``[C]``."""
        return self.confusion.diagonal() / self.confusion.sum(1)

    @property
    def protocol(self) -> str:
        """Episodes, inner steps, several views and reduced precision, as words for a table."""
        reduced = "" if self.precision == "float32" else f", {self.precision}"
        return f"{self.episodes}, {self.steps} inner steps{self.several_views}{reduced}"

    @property
    def several_views(self) -> str:
        """Their number and name, as the end of a list of words; empty for one."""
        return "" if self.views == "one" else f", {COUNT[self.views]} views ({self.views})"

    @property
    def mean(self) -> float:
        """Mean accuracy over tasks."""
        return float(self.accuracy.mean())

    @property
    def interval(self) -> float:
        """Half width of the 95 % interval of the mean, ``1.96 s / sqrt(tasks)``."""
        return half_width(self.accuracy)

    def __str__(self) -> str:
        return (
            f"{100 * self.mean:.2f} ± {100 * self.interval:.2f} % "
            f"({self.norm}, {len(self.accuracy)} tasks, {self.protocol})"
        )

    def __repr__(self) -> str:
        error = f"calibration error {100 * self.calibration_error:.1f} %"
        return f"Evaluation({self}, {error}, {len(self.class_names)} classes)"

    def _repr_html_(self) -> str:
        """A table of one row, for a notebook."""
        interval = "" if math.isnan(self.interval) else f" ± {100 * self.interval:.2f}"
        row = {
            "norm": self.norm,
            "accuracy": f"{100 * self.mean:.2f}{interval} %",
            "tasks": str(len(self.accuracy)),
            "protocol": self.protocol,
            "calibration error": f"{100 * self.calibration_error:.1f} %",
        }
        heads = "".join(f"<th>{escape(name)}</th>" for name in row)
        cells = "".join(f"<td>{escape(text)}</td>" for text in row.values())
        return f"<table><thead><tr>{heads}</tr></thead><tbody><tr>{cells}</tr></tbody></table>"


def half_width(values: Tensor) -> float:
    """Half width of the 95 % interval of a mean, ``1.96 s / sqrt(n)``; NaN for one value."""
    if len(values) < 2:
        return math.nan
    return 1.96 * float(values.double().std()) / math.sqrt(len(values))


def paired_difference(a: Evaluation, b: Evaluation) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of ``b - a``, task by task.

    Raises:
        ConfigurationError: if the two were not measured on the same tasks.
    """
    if len(a.accuracy) != len(b.accuracy) or a.episodes != b.episodes:
        raise ConfigurationError(
            f"a paired interval needs the same tasks; they are {len(a.accuracy)} of "
            f"{a.episodes} and {len(b.accuracy)} of {b.episodes}"
        )
    if a.class_names != b.class_names:
        raise ConfigurationError(
            "a paired interval needs the same tasks; they are of different classes: evaluate both "
            "on one split of one data set"
        )
    difference = b.accuracy.double() - a.accuracy.double()
    return float(difference.mean()), half_width(difference)


_BINS = 15


class Tally:
    """Counts over all queries, on the device.

    They need as much memory for a million queries as for one. (The calibration error of
    torchmetrics keeps every query, has a sixteenth interval for confidences of exactly 1, and
    needs a torchvision that loads.)
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self._pairs = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self._classes = classes
        # Of each interval of confidence: sum of confidences, right ones, all.
        self._bins = torch.zeros(_BINS, 3, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        """Counts queries; returns which are right, ``[T, N*Q]``."""
        logits = mask_classes(logits, batch.classes)
        confidence, chosen = logits.double().softmax(-1).max(-1)
        real = batch.query_y >= 0
        right = real & (chosen == batch.query_y)
        true, taken = (batch.classes.gather(1, y.clamp(min=0)) for y in (batch.query_y, chosen))
        self._pairs.index_add_(0, (true * self._classes + taken).flatten(), real.long().flatten())
        row = (confidence * _BINS).nan_to_num().long().clamp(max=_BINS - 1)
        counted = torch.stack([confidence.nan_to_num() * real, right, real], -1)
        self._bins.index_add_(0, row.flatten(), counted.double().flatten(0, 1))
        return right

    @property
    def confusion(self) -> Tensor:
        """Queries by their class and the one they were taken for, on the host."""
        return self._pairs.reshape(self._classes, self._classes).cpu()

    def calibration_error(self) -> float:
        """As ``Evaluation`` says."""
        confidence, right, _ = self._bins.unbind(1)
        return float((confidence - right).abs().sum() / self._bins[:, 2].sum())
