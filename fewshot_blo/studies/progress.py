"""Plots the convergence of a study's rows over Hessian-vector products and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewshot_blo.records.figure import new_figure, save_figure
from fewshot_blo.studies.pictures import COLOURS

GRADIENTS, PRODUCTS = "gradients a step", "Hessian products a step"
_SHORT = 300.0
"""Largest ratio of values on an axis with labels within decades."""
_OF_EVERY_RECORD = ("step", "seconds")
_PARTS_OF_RECORDS = ("loss/", "hypergradient/", "certificate/")


def draw_progress(
    records: Sequence[Mapping[str, Any]],
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
    *,
    seconds: str = "seconds",
) -> None:
    """Draws the study's observed figure, or the outer loss, over passes and seconds.

    A pass is a gradient of a loss, or a product with second derivatives of G.

    Args:
        records: lines of the table, with the number of gradients and products per outer step.
        logs: log records of each row.
        path: file of the figure.
        seconds: label of the axis of seconds.
    """
    passes = {
        record["method"]: record.get(GRADIENTS, 0.0) + record.get(PRODUCTS, 0.0)
        for record in records
    }
    figure = new_figure(13, 4.5)
    by_passes, by_seconds = figure.subplots(1, 2, sharey=True)
    for axes in (by_passes, by_seconds):
        axes.set_prop_cycle(**COLOURS)
    followed = "loss/outer"
    for name, log in logs.items():
        own = (key for record in log for key in record if _observed(key))
        followed = next(own, followed)
        values = [record[followed] for record in log]
        # A row that was not counted has an empty line, for the same colours on both sides.
        counted = log if passes[name] else []
        xs = [passes[name] * record["step"] for record in counted]
        by_passes.plot(xs, values[: len(xs)])
        by_seconds.plot([record["seconds"] for record in log], values, label=name)
    by_passes.set(xlabel="gradients and Hessian products", ylabel=followed)
    by_seconds.set(xlabel=seconds)
    for axes in (by_passes, by_seconds):
        axes.grid(alpha=0.3)
        points = [point for line in axes.lines for point in line.get_xydata()]
        if points:
            axes.set_xscale("log")
            _label(axes.xaxis, [x for x, _ in points])
        ys = [y for _, y in points]
        # Within a decade, a linear axis has readable ticks.
        if points and 0 < 10 * min(ys) < max(ys):
            axes.set_yscale("log")
            _label(axes.yaxis, ys)
    figure.legend(loc="outside right center")
    save_figure(figure, path)


def _observed(key: str) -> bool:
    """Whether a figure of a record is one that the study observes."""
    return key not in _OF_EVERY_RECORD and not key.startswith(_PARTS_OF_RECORDS)


def _label(axis: Any, values: Sequence[float]) -> None:
    """Labels a logarithmic axis so that labels do not overlap, at 1, 2 and 5 where it is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_minor_formatter(NullFormatter())
    positive = [value for value in values if value > 0]
    if positive and max(positive) < _SHORT * min(positive):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
