"""The picture of a search: the metric over trials, and over each setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshot_blo.experiments.tuning.results import Row, best_of, short, written
from fewshot_blo.experiments.tuning.space import Axis, Space
from fewshot_blo.records.figure import (
    COLOURS,
    new_figure,
    plain,
    save_figure,
    style,
    whole_numbers,
    wrapped,
)
from fewshot_blo.records.quantity import Quantity

_COLUMNS = 3
_PANEL_INCHES = 3.3
_LETTERS = 32
"""Most letters of a panel's choices that are written beside each other."""
_STATES = {"complete": ("o", COLOURS[0]), "pruned": ("x", COLOURS[4])}
"""Marker and colour of a trial's points by its state."""
_BEST = COLOURS[1]


def draw_search(space: Space, metric: Quantity, rows: Sequence[Row], path: Path) -> None:
    """Draws the validation metric by trial, with the best so far, and by each searched setting.

    Args:
        space: what was searched.
        metric: what validation measures.
        rows: the trials.
        path: file of the picture, a PNG.
    """
    shown = [row for row in rows if not math.isnan(row.value)]
    below = -(-len(space.axes) // _COLUMNS)
    trials, settings = _counted(len(rows), "trial"), _counted(len(space.axes), "setting")
    title = f"{trials} over {settings}; the star is the best one"
    figure = new_figure(title, 4 * _COLUMNS, 4 + (3 + _slanted(space)) * below)
    grid = figure.add_gridspec(1 + below, _COLUMNS, height_ratios=[1.3] + [1.0] * below)
    history = figure.add_subplot(grid[0, :])
    _history(history, metric, shown)
    if shown:
        named = history.get_legend_handles_labels()
        plain(figure.legend(*named, loc="outside lower center", ncols=4, frameon=False))
    names = short([axis.name for axis in space.axes])
    for index, (axis, name) in enumerate(zip(space.axes, names, strict=True)):
        place = grid[1 + index // _COLUMNS, index % _COLUMNS]
        first = figure.axes[1] if index else None
        _slice(figure.add_subplot(place, sharey=first), metric, axis, name, shown)
    save_figure(figure, path)


def _slanted(space: Space) -> float:
    """Height in inches of choices too long to be written beside each other."""
    every = [[written(choice) for choice in axis.choices] for axis in space.axes]
    long = [max(map(len, names)) for names in every if sum(map(len, names)) > _LETTERS]
    return 0.05 * max(long, default=0)


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _history(axes: Any, metric: Quantity, rows: Sequence[Row]) -> None:
    style(axes)
    complete = [row for row in rows if row.state == "complete"]
    pruned = [row for row in rows if row.state == "pruned"]
    if complete:
        intervals = [0 if math.isnan(r.interval) else metric.factor * r.interval for r in complete]
        numbers, values = _points(metric, complete)
        marks = {"fmt": "o", "capsize": 3, "color": _STATES["complete"][1]}
        axes.errorbar(numbers, values, intervals, label="complete, ± 95 %", **marks)
        best = [max(values[: n + 1], key=metric.rank) for n in range(len(values))]
        axes.step(numbers, best, where="post", color=_BEST, label="best so far")
        if complete[0].number == 0:
            axes.axhline(values[0], color="gray", linestyle="--", label="recipe")
    if pruned:
        marker, colour = _STATES["pruned"]
        points = _points(metric, pruned)
        axes.plot(*points, marker, color=colour, label="pruned, best until then")
    axes.set(xlabel="trial (number)", ylabel=f"validation {metric.label}", title="Trials")
    whole_numbers(axes.xaxis)


def _points(metric: Quantity, rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    return [row.number for row in rows], [metric.factor * row.value for row in rows]


def _slice(axes: Any, metric: Quantity, axis: Axis, name: str, rows: Sequence[Row]) -> None:
    style(axes)
    places = {repr(choice): index for index, choice in enumerate(axis.choices)}
    best = best_of(metric, rows)
    for state, (marker, colour) in _STATES.items():
        own = [row for row in rows if row.state == state and axis.name in row.values]
        values = [row.values[axis.name] for row in own]
        at = [places[repr(value)] for value in values] if axis.choices else values
        axes.plot(at, [metric.factor * row.value for row in own], marker, color=colour)
    if best is not None:
        value = best.values[axis.name]
        where = places[repr(value)] if axis.choices else value
        axes.plot([where], [metric.factor * best.value], "*", color=_BEST, markersize=12)
    _scale(axes, axis)
    axes.margins(y=0.1)  # The star of the best trial is larger than its point.
    axes.set_title(wrapped(f"{metric.name.capitalize()} by {name}", _PANEL_INCHES))
    label = wrapped(axis.name, _PANEL_INCHES)
    axes.set(xlabel=label, ylabel=f"validation {metric.label}")


def _scale(axes: Any, axis: Axis) -> None:
    """The whole range of a setting, whose trials may lie in a part of it."""
    if axis.choices:
        names = [written(choice) for choice in axis.choices]
        axes.set_xticks(range(len(names)), names, parse_math=False)
        if sum(map(len, names)) > _LETTERS:
            axes.tick_params("x", labelrotation=30)
            for text in axes.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.5, len(axis.choices) - 0.5)
        return
    margin = 0.05
    if axis.log:
        axes.set_xscale("log")
        factor = (axis.high / axis.low) ** margin
        axes.set_xlim(axis.low / factor, axis.high * factor)
        if axis.high >= 10 * axis.low:  # Labels of tenths would overlap.
            axes.xaxis.set_minor_formatter("")
        return
    reach = margin * (axis.high - axis.low)
    axes.set_xlim(axis.low - reach, axis.high + reach)
    if axis.whole:
        whole_numbers(axes.xaxis)
