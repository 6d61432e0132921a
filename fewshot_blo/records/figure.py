"""matplotlib figures of one standard, without a display: creation, inline HTML, atomic PNG files.

Every figure has a title, panels with labelled axes and one set of colours that colour-blind people
tell apart, and is saved with one resolution. ``save_figure`` warns of a figure below the standard.
"""

from __future__ import annotations

import base64
import html
import io
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewshot_blo.records.figure_check import below_standard
from fewshot_blo.records.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of at most seven lines, without the light yellow.

Source: Okabe & Ito, Color Universal Design (2008).
"""

LETTER_INCHES = 0.1
"""Width of a letter of a title, at most on average."""

_DPI = 120


def new_figure(
    title: str,
    width: float,
    height: float,
    *,
    layout: Literal["constrained", "compressed"] | None = "constrained",
) -> Figure:
    """A figure with its title alone; imports matplotlib lazily.

    Args:
        title: what the figure shows; it is wrapped to the width.
        width, height: size in inches.
        layout: layout engine of matplotlib, compressed for rows of images; None for manual
            placement.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(wrapped(title, width), fontsize=12, parse_math=False)
    return figure


def wrapped(title: str, width: float) -> str:
    """A title in lines of at most ``width`` inches."""
    return textwrap.fill(title, max(10, int(width / LETTER_INCHES)))


def panels(
    figure: Figure,
    rows: int = 1,
    columns: int = 1,
    *,
    share_x: bool | Literal["col"] = False,
    share_y: bool | Literal["row"] = False,
) -> list[Axes]:
    """Adds axes with the standard's colours and grid, row by row.

    Args:
        figure: figure without axes.
        rows, columns: how many.
        share_x, share_y: which panels have the same range; ``"col"`` and ``"row"``: those of a
            column or row.
    """
    grid: Any = figure.subplots(rows, columns, sharex=share_x, sharey=share_y, squeeze=False)
    for axes in grid.flat:
        style(axes)
    return list(grid.flat)


def style(axes: Axes) -> None:
    """Gives axes the standard's colours and a grid behind the data."""
    axes.set_prop_cycle(color=COLOURS)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def side_legend(axes: Axes) -> None:
    """Puts the legend of axes to their right, where it covers no data."""
    plain(axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False))


def plain(legend: Legend) -> None:
    """Draws the names of a legend as they are: a ``$`` in them starts no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def whole_numbers(axis: XAxis) -> None:
    """Labels a linear axis of counts at whole numbers alone, also where it has a single one."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def colour_bar(image: Any, axes: Axes | list[Axes], label: str) -> None:
    """Puts a colour bar to the right of axes.

    Args:
        image: what ``imshow`` returned for one of the axes.
        axes: axes with the bar's scale.
        label: quantity and unit.
    """
    first = axes[0] if isinstance(axes, list) else axes
    bar = first.figure.colorbar(image, ax=axes, label=label, pad=0.02)
    bar.ax.tick_params(labelsize=9)


def inline_image(figure: Figure, words: str) -> str:
    """An HTML ``<img>`` that embeds the figure as a PNG, shown with 72 pixels an inch.

    Args:
        figure: figure to embed.
        words: alternative text of the image.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    width = round(72 * figure.get_size_inches()[0])
    return f'<img alt="{html.escape(words)}" width="{width}" src="data:image/png;base64,{data}">'


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG at 120 dpi, atomically.

    A figure without a title, labels, legend or with more than seven named lines in a panel is
    written too, with a warning that says what it lacks.
    """
    for fault in below_standard(figure):
        warnings.warn(f"{path.name}: {fault}", stacklevel=2)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)
