"""The picture of a training run: loss and metric over outer steps, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot_blo.records.figure import (
    COLOURS,
    new_figure,
    panels,
    save_figure,
    side_legend,
    whole_numbers,
)
from fewshot_blo.records.quantity import ACCURACY

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Draws loss and metric over outer steps, in training and validation, as a PNG."""
    figure = new_figure("Training: loss and metric of each outer step", 13, 4)
    loss, metric = panels(figure, 1, 2)
    key = _metric_of(records)
    factor = ACCURACY.factor if key == ACCURACY.key else 1.0
    _plot(loss, _points(records, "loss/outer"), "query loss (F)", COLOURS[0])
    _plot(loss, _points(records, "loss/inner"), "support loss (G)", COLOURS[1])
    _plot(metric, _points(records, f"{key}/train", factor), "training tasks", COLOURS[0])
    _plot_validation(metric, records, f"{key}/validation", factor)
    name = key.replace("_", " ")
    label = ACCURACY.label if key == ACCURACY.key else name
    loss.set(xlabel="outer step (count)", ylabel="loss", title="Loss")
    metric.set(xlabel="outer step (count)", ylabel=label, title=name.capitalize())
    if key == ACCURACY.key:
        metric.set_ylim(None, 101)
    for axes in (loss, metric):
        whole_numbers(axes.xaxis)
        if axes.lines:
            side_legend(axes)
    save_figure(figure, path)


def _metric_of(records: list[dict[str, Any]]) -> str:
    """The metric that validation or training tasks have in a log."""
    names = (name.partition("/") for record in records for name in record)
    return next((key for key, _, part in names if part in ("validation", "train")), ACCURACY.key)


def _points(
    records: list[dict[str, Any]], name: str, factor: float = 1.0
) -> list[tuple[int, float]]:
    return [(r["step"], factor * r[name]) for r in records if name in r]


def _plot(axes: Axes, points: list[tuple[int, float]], label: str, colour: str) -> None:
    """Draws a faint curve with its moving average over a tenth of the steps."""
    if not points:
        return
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=colour, alpha=0.25)
    smooth = []
    for index in range(len(values)):
        # A centred window: a mean over past steps only lags behind a falling curve.
        reach = min(len(values) // 20, index, len(values) - 1 - index)
        window = values[index - reach : index + reach + 1]
        smooth.append(sum(window) / len(window))
    marker = "o" if len(steps) < 2 else ""
    axes.plot(steps, smooth, color=colour, marker=marker, markersize=4, label=label)


def _plot_validation(axes: Axes, records: list[dict[str, Any]], name: str, factor: float) -> None:
    """Draws validation means with a band of their intervals, where the log has them."""
    points = _points(records, name, factor)
    if not points:
        return
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=COLOURS[1], marker="o", markersize=4, label="validation tasks")
    own = [r for r in records if name in r and f"{name}_interval" in r]
    if own:
        middle, half = ([factor * r[key] for r in own] for key in (name, f"{name}_interval"))
        low = [m - h for m, h in zip(middle, half, strict=True)]
        high = [m + h for m, h in zip(middle, half, strict=True)]
        where = [r["step"] for r in own]
        look: dict[str, Any] = {"color": COLOURS[1], "label": "± 95 % interval"}
        if len(own) == 1:  # A band of one point has no width.
            axes.errorbar(where, middle, half, fmt="none", capsize=3, **look)
        else:
            axes.fill_between(where, low, high, alpha=0.2, linewidth=0, **look)
