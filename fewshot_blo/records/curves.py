"""Figures of named curves: one standard for their panels, intervals, legends and ticks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fewshot_blo.records.figure import COLOURS, new_figure, panels, side_legend
from fewshot_blo.records.figure_check import MOST_LINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHORT = 300.0
"""Largest ratio of values on a logarithmic axis with labels within decades."""
MARKED = 30
"""Smallest number of points that are drawn without markers."""
_LETTER_INCHES = 0.08
"""Width of a letter of a legend, at most on average."""


@dataclass(frozen=True)
class Curve:
    """Points of a line, and the half-widths of their intervals.

    Attributes:
        xs, ys: coordinates, ``[M]``.
        halves: half-widths ``[M]`` of a band around the line; empty for none.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    halves: Sequence[float] = field(default=())


@dataclass(frozen=True)
class Panel:
    """Curves over one quantity.

    Attributes:
        curves: curves by name; the same names in each panel of a figure.
        xlabel, ylabel: quantities and units.
        title: what tells this panel from the others; empty if it is the only one.
        xscale, yscale: ``"linear"`` or ``"log"``.
    """

    curves: Mapping[str, Curve]
    xlabel: str
    ylabel: str
    title: str = ""
    xscale: str = "linear"
    yscale: str = "linear"


def curve_figure(title: str, side_by_side: Sequence[Panel]) -> Figure:
    """A figure of panels beside each other, with one legend.

    More than seven curves are divided between rows of panels with shared axes, each of which has
    the others in grey. Panels with equal labels of their vertical axes share them.

    Args:
        title: what the figure shows.
        side_by_side: panels with curves of the same names.
    """
    names = list(side_by_side[0].curves)
    groups = divided(names)
    columns = len(side_by_side)
    legend = max(3.0, 0.9 + _LETTER_INCHES * max(map(len, names), default=0))
    figure = new_figure(title, legend + 4.6 * columns, 0.6 + 3.7 * len(groups))
    shared = len({panel.ylabel for panel in side_by_side}) == 1
    every = panels(figure, len(groups), columns, share_x="col", share_y=shared)
    for place, axes in enumerate(every):
        panel, row = side_by_side[place % columns], place // columns
        _draw(axes, panel.curves, groups[row])
        axes.set(xscale=panel.xscale, yscale=panel.yscale)
        if row == len(groups) - 1:
            axes.set_xlabel(panel.xlabel)
        if place % columns == 0 or not shared:
            axes.set_ylabel(panel.ylabel)
        own = f"methods {row + 1} of {len(groups)}" if len(groups) > 1 else ""
        axes.set_title(", ".join(part for part in (panel.title, own) if part), fontsize=11)
        points = [p for c in panel.curves.values() for p in zip(c.xs, c.ys, strict=True)]
        if panel.xscale == "log":
            label_decades(axes.xaxis, [x for x, _ in points])
        if panel.yscale == "log":
            label_decades(axes.yaxis, [y for _, y in points])
        if place % columns == columns - 1 and len(names) > 1:
            side_legend(axes)
    return figure


def divided(names: Sequence[str]) -> list[list[str]]:
    """The names in as few groups of at most seven as there can be, of about equal sizes."""
    count = max(1, -(-len(names) // MOST_LINES))
    return [part.tolist() for part in np.array_split(np.array(names, dtype=object), count)]


def _draw(axes: Axes, curves: Mapping[str, Curve], own: Sequence[str]) -> None:
    marker = "o" if max((len(c.xs) for c in curves.values()), default=0) < MARKED else ""
    for name in curves.keys() - set(own):
        axes.plot(curves[name].xs, curves[name].ys, color="0.85", linewidth=1, zorder=1)
    for name, colour in zip(own, COLOURS, strict=False):
        curve = curves[name]
        own_marker = "o" if len(curve.xs) == 1 else marker
        axes.plot(curve.xs, curve.ys, color=colour, marker=own_marker, markersize=4, label=name)
        if len(curve.halves):
            low, high = band(curve)
            axes.fill_between(curve.xs, low, high, color=colour, alpha=0.2, linewidth=0)


def band(curve: Curve) -> tuple[Any, Any]:
    """The lower and upper ends of the intervals, ``[M]`` each."""
    ys, halves = np.asarray(curve.ys), np.asarray(curve.halves)
    return ys - halves, ys + halves


def label_decades(axis: Any, values: Sequence[float]) -> None:
    """Labels a logarithmic axis so that labels do not overlap, at 1, 2 and 5 where it is short.

    Args:
        axis: logarithmic axis of matplotlib.
        values: what is drawn along it; it stays as it is without a positive one.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_minor_formatter(NullFormatter())
    positive = [value for value in values if value > 0]
    if positive and max(positive) < _SHORT * min(positive):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
