"""Figures of few-shot tasks: one row per class, its shots beside some of its queries.

The functions take tensors, not a ``TaskBatch``, whose module imports this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.records.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 12
_GAP = 0.08
_CELL_INCHES = 0.6
_LETTER_INCHES = 0.09
_TITLE_INCHES = 0.45
_HEAD_INCHES = 0.4
_LEAST_WIDTH, _LEAST_LEFT = 4.0, 0.9
"""Space for the title, and for the numbers of tasks beside the rows."""


def draw_episodes(
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    classes: Tensor,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws T tasks.

    Args:
        support_x, query_x: images ``[T, rows, 1 or 3, H, W]`` in [0, 1].
        support_y, query_y: their labels ``[T, rows]``, -1 where padded.
        classes: ``[T, N]``, indices into ``class_names``, -1 where padded.
        class_names: class names of the data set; numbers by default.
    """
    tasks, way = classes.shape
    names = [[_label(c, class_names) for c in row if c >= 0] for row in classes.tolist()]
    shots, queries = _columns(*(max(1, y.shape[1] // way) for y in (support_y, query_y)))
    letters = max(len(name) for row in names for name in row)
    left = max(_LEAST_LEFT, 0.3 + _LETTER_INCHES * letters)
    images = (shots + queries + 0.6) * _CELL_INCHES
    width = max(_LEAST_WIDTH, left + images)
    rows = way * _CELL_INCHES
    height = tasks * (_TITLE_INCHES + rows) + 0.1 + _HEAD_INCHES
    figure = new_figure("Few-shot tasks: support and query images", width, height, layout=None)
    for t in range(tasks):
        bottom = height - _HEAD_INCHES - (t + 1) * (_TITLE_INCHES + rows)
        box = (left / width, bottom / height, 1 - (left + 0.1) / width, rows / height)
        support = _mosaic(support_x[t], support_y[t], len(names[t]), shots)
        query = _mosaic(query_x[t], query_y[t], len(names[t]), queries)
        _draw_task(figure.add_axes(box), support, query, t, names[t], shots)
    return figure


def _columns(shots: int, queries: int) -> tuple[int, int]:
    """How many shots and queries of a class fit into a row of the figure."""
    shots = min(shots, max(_COLUMNS // 2, _COLUMNS - queries))
    return shots, min(queries, _COLUMNS - shots)


def _draw_task(
    axes: Axes, support: Tensor, query: Tensor, number: int, names: list[str], shots: int
) -> None:
    """Draws one task: mosaics of its support and query sets, class names to the left."""
    height, width = support.shape[0] / len(names), support.shape[1] / shots
    gap = torch.ones(support.shape[0], round(width / 2), support.shape[2])
    mosaic = torch.cat([support, gap, query], 1)
    axes.imshow(mosaic.expand(-1, -1, 3).numpy())
    axes.set_anchor("NW")
    axes.set_axis_off()
    style: dict[str, Any] = {"parse_math": False, "fontsize": 10}
    above = -0.12 * height
    axes.text(-0.1 * width, above, f"task {number}", ha="right", weight="bold", **style)
    axes.text(0, above, "support", weight="bold", **style)
    axes.text(support.shape[1] + gap.shape[1], above, "query", weight="bold", **style)
    for n, name in enumerate(names):
        axes.text(-0.1 * width, (n + 0.5) * height, name, ha="right", va="center", **style)


def _mosaic(images: Tensor, labels: Tensor, way: int, columns: int) -> Tensor:
    """The first images of each class, one row per class on white, ``[way * h, columns * w, C]``."""
    channels, height, width = images.shape[1:]
    edge = max(1, round(_GAP * width / 2))
    cells = torch.ones(way, columns, channels, height, width)
    for n in range(way):
        of_class = images[labels == n][:columns]
        cells[n, : len(of_class)] = of_class.detach().float().cpu().clamp(0, 1)
    cells = F.pad(cells, (edge, edge, edge, edge), value=1.0)
    return cells.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)


def _label(index: int, class_names: Sequence[str] | None, length: int = 28) -> str:
    """Class name or number, shortened to ``length`` ASCII characters, which every font has."""
    name = f"class {index}" if class_names is None else class_names[index]
    text = name.encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= length else "..." + text[3 - length :]
