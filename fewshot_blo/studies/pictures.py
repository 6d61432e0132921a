"""Figures of the studies: histograms, rows of images, curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewshot_blo.records.figure import new_figure, save_figure

_NAMES = "blue orange green red purple brown pink gray olive cyan"
COLOURS = {
    "color": [f"tab:{name}" for name in _NAMES.split()] * 2,
    "linestyle": ["-"] * 10 + ["--"] * 10,
}
"""Styles of up to twenty distinguishable lines."""


def histograms(
    values: Mapping[str, Tensor], groups: Mapping[str, Tensor], label: str, path: Path
) -> None:
    """Draws one histogram over [0, 1] per row of a table, with groups of entries in colours.

    Args:
        values: values of each row, ``[M]``.
        groups: masks of the groups by name, ``[M]``.
        label: label of the horizontal axes.
        path: file of the figure.
    """
    columns = min(len(values), 4)
    lines = -(-len(values) // columns)
    figure = new_figure(3.2 * columns, 2.4 * lines + 0.4)
    grid: Any = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for axes in grid.flat[len(values) :]:
        axes.remove()
    for axes, (name, entries) in zip(grid.flat, values.items(), strict=False):
        for group, mask in groups.items():
            axes.hist(entries[mask].numpy(), 40, (0, 1), alpha=0.6, label=group)
        axes.set(title=name, xlabel=label)
    grid[0, 0].legend()
    save_figure(figure, path)


def images(pictures: Mapping[str, Tensor], titles: list[str], path: Path) -> None:
    """Draws one line of images per row of a table.

    Args:
        pictures: images of each row, ``[M, H, W]`` in grey or ``[M, H, W, 3]`` in colour.
        titles: titles of the M columns.
        path: file of the figure.
    """
    columns = len(titles)
    figure = new_figure(0.8 * columns + 2, 0.95 * len(pictures) + 0.3)
    grid: Any = figure.subplots(len(pictures), columns, squeeze=False)
    for line, (name, row) in zip(grid, pictures.items(), strict=True):
        for axes, image in zip(line, row, strict=True):
            axes.imshow(image.numpy(), cmap="gray")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    save_figure(figure, path)


def curves(
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
        lines: horizontal and vertical values of each row.
        xlabel, ylabel: labels of the axes.
        path: file of the figure.
        xscale, yscale: scales of the axes, "log" or "linear".
    """
    figure = new_figure(8.5, 4.5)
    axes = figure.subplots()
    axes.set_prop_cycle(**COLOURS)
    for name, (xs, ys) in lines.items():
        axes.plot(xs, ys, marker="." if len(xs) < 30 else "", label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center")
    save_figure(figure, path)
