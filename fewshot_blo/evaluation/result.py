"""``Evaluation``: accuracy, confusion matrix, calibration and protocol; paired intervals."""

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
    """Accuracy on a number of tasks, and the protocol under which it was measured.

    Attributes:
        norm: norm mode of the query set.
        episodes: text for tables: way, shot, queries per class and seed.
        steps: number of inner steps.
        accuracy: accuracy of each task, ``[tasks]``, float64 in [0, 1].
        class_names: names of the C classes that were drawn.
        confusion: confusion matrix ``[C, C]``: number of queries by true class (row) and predicted
            class (column).
        calibration_error: expected calibration error with 15 bins of equal width: the mean of
            |accuracy - confidence| over the bins, weighted by their number of queries
            (Guo et al., arXiv 1706.04599, equation 3).
        precision: precision of the network's matrix products and convolutions.
        views: views of an image, over which features are averaged.
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
        """Accuracy of each class over all of its queries, ``[C]``."""
        return self.confusion.diagonal() / self.confusion.sum(1)

    @property
    def protocol(self) -> str:
        """Text for tables: episodes and inner steps; views and precision unless the defaults."""
        reduced = "" if self.precision == "float32" else f", {self.precision}"
        return f"{self.episodes}, {self.steps} inner steps{self.several_views}{reduced}"

    @property
    def several_views(self) -> str:
        """Number and name of the views, to append to a text; empty for one view."""
        return "" if self.views == "one" else f", {COUNT[self.views]} views ({self.views})"

    @property
    def mean(self) -> float:
        """Mean accuracy over tasks."""
        return float(self.accuracy.mean())

    @property
    def interval(self) -> float:
        """Half-width of the 95 % confidence interval of the mean, ``1.96 s / sqrt(tasks)``."""
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
        """A table of one row, for notebooks."""
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
    """Half-width of the 95 % confidence interval of a mean, ``1.96 s / sqrt(n)``; NaN if n < 2."""
    if len(values) < 2:
        return math.nan
    return 1.96 * float(values.double().std()) / math.sqrt(len(values))


def paired_difference(a: Evaluation, b: Evaluation) -> tuple[float, float]:
    """Mean and half-width of the 95 % confidence interval of the paired differences ``b - a``.

    Raises:
        ConfigurationError: if the two were not measured on the same tasks.
    """
    if len(a.accuracy) != len(b.accuracy) or a.episodes != b.episodes:
        raise ConfigurationError(
            f"the evaluations are on {len(a.accuracy)} tasks of {a.episodes} and "
            f"{len(b.accuracy)} tasks of {b.episodes}: a paired interval needs the same tasks"
        )
    if a.class_names != b.class_names:
        raise ConfigurationError(
            "the evaluations are on tasks of different classes, but a paired interval needs the "
            "same tasks: evaluate both on one split of one data set"
        )
    difference = b.accuracy.double() - a.accuracy.double()
    return float(difference.mean()), half_width(difference)


_BINS = 15


class Tally:
    """Confusion matrix and calibration bins over all queries, accumulated on the device.

    Memory does not grow with the number of queries. (torchmetrics' calibration error keeps every
    query, has a 16th bin for confidences of exactly 1, and needs a torchvision that loads.)
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self._pairs = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self._classes = classes
        # For each bin: sum of confidences, number of correct queries, number of queries.
        self._bins = torch.zeros(_BINS, 3, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        """Counts the queries of logits ``[T, N*Q, N]``; returns which are correct, ``[T, N*Q]``."""
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
        """Number of queries by true class (row) and predicted class (column), on the CPU."""
        return self._pairs.reshape(self._classes, self._classes).cpu()

    def calibration_error(self) -> float:
        """Expected calibration error, as defined in ``Evaluation``."""
        confidence, right, _ = self._bins.unbind(1)
        return float((confidence - right).abs().sum() / self._bins[:, 2].sum())
