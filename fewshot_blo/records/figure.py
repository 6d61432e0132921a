"""matplotlib figures without a display: creation, inline HTML, atomic PNG files."""

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
    """An empty figure; imports matplotlib lazily.

    Args:
        width, height: size in inches.
        layout: layout engine of matplotlib; None for manual placement.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def inline_image(figure: Figure, words: str) -> str:
    """An HTML ``<img>`` that embeds the figure as a PNG at 72 dpi.

    Args:
        figure: figure to embed.
        words: alternative text of the image.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=72)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{data}">'


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG at 120 dpi, atomically."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
