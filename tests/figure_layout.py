"""Where the texts of a figure are: cut by its edge, over each other, or over data."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

LEAST_FONT = 8.0
_SLACK = 1.5
"""Pixels by which boxes may meet: extents are of whole lines of text."""


def misplaced(figure: Figure) -> list[str]:
    """One sentence for each text that is cut, overlaps another one or is too small."""
    figure.canvas.draw()
    boxes = {text: text.get_window_extent() for text in _texts(figure)}
    faults = [f"{t.get_text()!r} is cut" for t, box in boxes.items() if not _within(figure, box)]
    faults += [f"{t.get_text()!r} is small" for t in boxes if float(t.get_fontsize()) < LEAST_FONT]
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        if _overlap(a, b):
            faults.append(f"{one.get_text()!r} and {other.get_text()!r} overlap")
    for legend in _legends(figure):
        box = legend.get_window_extent()
        faults += ["a legend is cut"] * (not _within(figure, box))
        faults += [
            f"a legend covers the panel {axes.get_title()!r}"
            for axes in figure.axes
            if axes.has_data() and _overlap(box, axes.get_window_extent())
        ]
    return faults


def _texts(figure: Figure) -> list[Text]:
    """What is drawn as text, tick labels within their axes included."""
    texts = [*figure.texts, figure._suptitle] if hasattr(figure, "_suptitle") else [*figure.texts]
    for axes in figure.axes:
        texts += [axes.title, *axes.texts]
        if axes.axison:
            texts += [axes.xaxis.label, axes.yaxis.label, *_tick_labels(axes)]
    texts += [text for legend in _legends(figure) for text in legend.get_texts()]
    unique = dict.fromkeys(t for t in texts if t is not None)
    return [t for t in unique if t.get_visible() and t.get_text().strip()]


def _tick_labels(axes: Axes) -> list[Text]:
    found = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        found += [t.label1 for t in ticks if low <= t.get_loc() <= high and t.label1.get_visible()]
    return found


def _legends(figure: Figure) -> list[Any]:
    own = [axes.get_legend() for axes in figure.axes]
    return [*figure.legends, *(legend for legend in own if legend is not None)]


def _within(figure: Figure, box: Bbox) -> bool:
    whole = figure.bbox
    low = box.x0 >= whole.x0 - _SLACK and box.y0 >= whole.y0 - _SLACK
    return bool(low and box.x1 <= whole.x1 + _SLACK and box.y1 <= whole.y1 + _SLACK)


def _overlap(a: Bbox, b: Bbox) -> bool:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return bool(width > _SLACK and height > _SLACK)
