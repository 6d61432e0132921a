"""Figures of matplotlib that need no screen, written whole or not at all."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fewshot_blo.records.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(
    width: float, height: float, *, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """An empty figure; matplotlib is imported by the first.

    Args:
        width, height: in inches.
        layout: what places its parts; None for the caller.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def inline_image(figure: Figure, words: str) -> str:
    """An ``<img>`` of HTML that holds the figure as a PNG.

    Args:
        figure: at 72 dots an inch.
        words: what stands where images are not shown.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=72)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{data}">'


def save_figure(figure: Figure, path: Path) -> None:
    """Writes it as a PNG."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
