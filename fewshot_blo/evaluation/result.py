"""``Evaluation``: a metric of each task, confusion matrix and protocol; paired intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.counts import Counts
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.networks.views import COUNT, Views
from fewshot_blo.problems import NormMode
from fewshot_blo.records.quantity import ACCURACY, Quantity
from fewshot_blo.records.shard import Shard


@dataclass(frozen=True)
class Part:
    """Which part of an evaluation was measured, and what has to agree with the other parts.

    Attributes:
        shard: the part.
        tasks: number of tasks of all parts.
        adaptation: inner steps and floating-point type, as text.
        weights: digest of the weights and statistics of the problem.
        data: digest of the first task, a sample of the examples, and the names of the classes.
    """

    shard: Shard
    tasks: int
    adaptation: str
    weights: str
    data: str


@dataclass(frozen=True)
class Evaluation:
    """Accuracy, or another metric, of a number of tasks, and the protocol it was measured under.

    Attributes:
        norm: norm mode of the query set.
        episodes: text for tables: way, shot, queries per class and seed.
        steps: number of inner steps.
        values: the metric of each task, ``[tasks]``, float64; accuracy is in [0, 1].
        class_names: names of the C classes that were drawn; empty for tasks without classes.
        counts: numbers of queries by true and predicted class, and by confidence; none for tasks
            without classes.
        precision: precision of the network's matrix products and convolutions.
        views: views of an image, over which features are averaged.
        part: which part of an evaluation this is; None for all of it.
        metric: what was measured.
        others: values of further metrics, ``[tasks]`` each, by ``Metric.quantity``.
        drawn_from: text for tables: split and data set of the tasks; empty for the test split of
            the data set that the model was trained on.
    """

    norm: NormMode
    episodes: str
    steps: int
    values: Tensor
    class_names: Sequence[str]
    counts: Counts
    precision: Precision = "float32"
    views: Views = "one"
    part: Part | None = None
    metric: Quantity = ACCURACY
    others: Mapping[Quantity, Tensor] = field(default_factory=dict)
    drawn_from: str = ""

    @property
    def confusion(self) -> Tensor:
        """Number of queries by true class (row) and predicted class (column), ``[C, C]``.

        It is made when it is asked for: of 20,000 classes it takes 3.2 GB.
        """
        return self.counts.confusion()

    @property
    def calibration_error(self) -> float:
        """Expected calibration error with 15 bins of equal width, as defined in ``Counts``."""
        return self.counts.calibration_error()

    @property
    def class_accuracy(self) -> Tensor:
        """Accuracy of each class over all of its queries, ``[C]``."""
        right, queries = self.counts.by_class()
        return right / queries

    @property
    def protocol(self) -> str:
        """Text for tables: episodes, inner steps; split, views, precision unless the defaults."""
        reduced = "" if self.precision == "float32" else f", {self.precision}"
        drawn = f"{self.episodes}{self.other_split}"
        return f"{drawn}, {self.steps} inner steps{self.several_views}{reduced}"

    @property
    def other_split(self) -> str:
        """Split and data set, to append to a text; empty for the usual test split."""
        return f", {self.drawn_from}" if self.drawn_from else ""

    @property
    def several_views(self) -> str:
        """Number and name of the views, to append to a text; empty for one view."""
        return "" if self.views == "one" else f", {COUNT[self.views]} views ({self.views})"

    @property
    def mean(self) -> float:
        """Mean over tasks."""
        return float(self.values.mean())

    @property
    def interval(self) -> float:
        """Half-width of the 95 % confidence interval of the mean, ``1.96 s / sqrt(tasks)``."""
        return half_width(self.values)

    def __str__(self) -> str:
        return "\n    ".join([self.line, *self.further])

    @property
    def line(self) -> str:
        """The metric with its interval and protocol, without further metrics."""
        return (
            f"{self.named}{self.metric.text(self.mean, self.interval)} "
            f"({self.norm}, {len(self.values)} tasks, {self.protocol})"
        )

    @property
    def further(self) -> Sequence[str]:
        """Name and value of each further metric, with its interval."""
        return [
            f"{metric.name} {metric.text(float(values.mean()), half_width(values))}"
            for metric, values in self.others.items()
        ]

    def __repr__(self) -> str:
        if not self.class_names:
            return f"Evaluation({self.line})"
        error = f"calibration error {100 * self.calibration_error:.1f} %"
        return f"Evaluation({self.line}, {error}, {len(self.class_names)} classes)"

    @property
    def named(self) -> str:
        """The metric's name, to begin a text with; accuracy goes without saying."""
        return "" if self.metric == ACCURACY else f"{self.metric.name} "

    def _repr_html_(self) -> str:
        """A table of one row, for notebooks."""
        row = {
            "norm": self.norm,
            self.metric.name: self.metric.text(self.mean, self.interval),
            "tasks": str(len(self.values)),
            "protocol": self.protocol,
        }
        if self.class_names:
            row["calibration error"] = f"{100 * self.calibration_error:.1f} %"
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
    if len(a.values) != len(b.values) or a.episodes != b.episodes:
        raise ConfigurationError(
            f"the evaluations are on {len(a.values)} tasks of {a.episodes} and "
            f"{len(b.values)} tasks of {b.episodes}: a paired interval needs the same tasks"
        )
    if a.metric != b.metric:
        raise ConfigurationError(
            f"the evaluations are of {a.metric.name} and {b.metric.name}: a difference needs one "
            "metric"
        )
    if a.class_names != b.class_names:
        raise ConfigurationError(
            "the evaluations are on tasks of different classes, but a paired interval needs the "
            "same tasks: evaluate both on one split of one data set"
        )
    difference = b.values.double() - a.values.double()
    return float(difference.mean()), half_width(difference)
