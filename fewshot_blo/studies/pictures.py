"""Figures of the studies: histograms, rows of images, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fewshot_blo.records.curves import Curve, Panel, curve_figure
from fewshot_blo.records.figure import (
    COLOURS,
    colour_bar,
    new_figure,
    panels,
    plain,
    save_figure,
    wrapped,
)

_LETTER_INCHES = 0.09
_PANEL_INCHES = 2.9


def histograms(
    title: str,
    values: Mapping[str, Tensor],
    groups: Mapping[str, Tensor],
    label: str,
    path: Path,
) -> None:
    """Draws one histogram over [0, 1] per row of a table, with groups of entries in colours.

    Counts are on one logarithmic scale, for rows whose values are all alike hide others otherwise.

    Args:
        title: what the figure shows.
        values: values of each row, ``[M]``.
        groups: masks of the groups by name, ``[M]``.
        label: label of the horizontal axes.
        path: file of the figure.
    """
    columns = min(len(values), 4)
    lines = -(-len(values) // columns)
    names = [wrapped(name, _PANEL_INCHES) for name in values]
    above = 0.2 * max(name.count("\n") for name in names)
    width, height = _PANEL_INCHES * columns + 1.4, (2.4 + above) * lines + 0.9
    figure = new_figure(title, max(6.0, width), height)
    grid = panels(figure, lines, columns, share_x=True, share_y=True)
    for place, entries in enumerate(values.values()):
        axes = grid[place]
        for (group, mask), colour in zip(groups.items(), COLOURS, strict=False):
            axes.hist(entries[mask].numpy(), 40, range=(0, 1), alpha=0.6, color=colour, label=group)
        axes.set_yscale("log")
        axes.set_title(names[place], fontsize=11, parse_math=False)
        if place + columns >= len(values):
            axes.set_xlabel(label)
            axes.tick_params(labelbottom=True)
        if place % columns == 0:
            axes.set_ylabel("training images (count)")
    for axes in grid[len(values) :]:
        axes.remove()
    named = grid[0].get_legend_handles_labels()
    plain(figure.legend(*named, loc="outside right upper", fontsize=9, frameon=False))
    save_figure(figure, path)


def images(
    title: str,
    pictures: Mapping[str, Tensor],
    titles: Sequence[str],
    path: Path,
    *,
    label: str = "",
) -> None:
    """Draws one line of images per row of a table.

    Args:
        title: what the figure shows.
        pictures: images of each row, ``[M, H, W]`` in grey or ``[M, H, W, 3]`` in colour.
        titles: titles of the M columns.
        path: file of the figure.
        label: quantity and unit of values, of which each row has a scale and a colour bar of its
            own; by default, the images are drawn from black at 0 to white at 1.
    """
    columns = len(titles)
    cell = max(0.8, _LETTER_INCHES * max(len(words) for words in titles) + 0.1)
    left = 0.3 + _LETTER_INCHES * max(len(name) for name in pictures)
    width = max(4.5, cell * columns + left + (1.3 if label else 0))
    figure = new_figure(title, width, 0.95 * len(pictures) + 0.5, layout="compressed")
    grid: Any = figure.subplots(len(pictures), columns, squeeze=False)
    for line, (name, row) in zip(grid, pictures.items(), strict=True):
        low, high = _scale_of(row) if label else (0.0, 1.0)
        for axes, image in zip(line, row, strict=True):
            shown = image.numpy() if label else image.clamp(0, 1).numpy()
            drawn = axes.imshow(shown, cmap="gray", vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", parse_math=False)
        if label:
            colour_bar(drawn, list(line), label)
    for axes, words in zip(grid[0], titles, strict=True):
        axes.set_title(words, fontsize=10, parse_math=False)
    save_figure(figure, path)


def _scale_of(row: Tensor) -> tuple[float, float]:
    """Least and greatest finite value, apart from each other."""
    finite = row[row.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return (low, high) if low < high else (low - 0.1, high + 0.1)


def curves(
    title: str,
    lines: Mapping[str, tuple[list[float], list[float]]],
    xlabel: str,
    ylabel: str,
    path: Path,
    *,
    xscale: str = "log",
    yscale: str = "log",
) -> None:
    """Draws one curve per row of a table.

    Args:
        title: what the figure shows.
        lines: horizontal and vertical values of each row.
        xlabel, ylabel: labels of the axes, with units.
        path: file of the figure.
        xscale, yscale: scales of the axes, "log" or "linear".
    """
    drawn = {name: Curve(xs, ys) for name, (xs, ys) in lines.items()}
    panel = Panel(drawn, xlabel, ylabel, xscale=xscale, yscale=yscale)
    save_figure(curve_figure(title, [panel]), path)
