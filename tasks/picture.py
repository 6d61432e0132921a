"""Pictures of tasks, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.records.figure import new_figure, save_figure
from fewshot_blo.tasks.batch import TaskBatch
from fewshot_blo.tasks.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 12
_GAP = 0.08
_CELL_INCHES = 0.6
_LETTER_INCHES = 0.09
_TITLE_INCHES = 0.45


def episode_picture(
    batch: TaskBatch, path: Path, *, class_names: Sequence[str] | None = None, tasks: int = 4
) -> None:
    """Writes a PNG of a batch's first tasks: a row a class, its shots beside some of its queries.

    Args:
        batch: grey ``[T, rows, 1, H, W]`` or RGB ``[T, rows, 3, H, W]`` images in [0, 1].
        path: where the picture goes, whole or not at all.
        class_names: of the data set, to which ``batch.classes`` points; numbers if not given.
        tasks: how many tasks to show at most.

    Raises:
        DataError: if no task is to be shown, or images are neither grey nor RGB.
    """
    shape = list(batch.support_x.shape)
    if len(shape) != 5 or shape[2] not in (1, 3):
        raise DataError(
            f"support_x has shape {shape}: a picture needs [tasks, rows, 1 or 3, height, width]"
        )
    shown = min(tasks, batch.tasks)
    if shown < 1:
        raise DataError(f"tasks is {tasks} of a batch of {batch.tasks}: show at least one")
    names = [
        [_label(c, class_names) for c in row if c >= 0] for row in batch.classes[:shown].tolist()
    ]
    shots, queries = _columns(batch)
    left = 0.3 + _LETTER_INCHES * max(len(name) for row in names for name in row)
    width = left + (shots + queries + 0.6) * _CELL_INCHES
    rows = batch.way * _CELL_INCHES
    height = shown * (_TITLE_INCHES + rows) + 0.1
    figure = new_figure(width, height, layout=None)
    for t in range(shown):
        bottom = height - (t + 1) * (_TITLE_INCHES + rows)
        box = (left / width, bottom / height, 1 - (left + 0.1) / width, rows / height)
        _draw_task(figure.add_axes(box), batch[t : t + 1], t, names[t], shots, queries)
    save_figure(figure, path)


def _columns(batch: TaskBatch) -> tuple[int, int]:
    """How many shots and how many queries of a class fit into a row of the picture."""
    shots = batch.support_x.shape[1] // batch.way
    queries = batch.query_x.shape[1] // batch.way
    shots = min(shots, max(_COLUMNS // 2, _COLUMNS - queries))
    return shots, min(queries, _COLUMNS - shots)


def _draw_task(
    axes: Axes, task: TaskBatch, number: int, names: list[str], shots: int, queries: int
) -> None:
    """One task, a batch of one, as a mosaic with the class names at its left."""
    support = _mosaic(task.support_x[0], task.support_y[0], len(names), shots)
    query = _mosaic(task.query_x[0], task.query_y[0], len(names), queries)
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
    """The first images of each class side by side on white, ``[way * h, columns * w, C]``."""
    channels, height, width = images.shape[1:]
    edge = max(1, round(_GAP * width / 2))
    cells = torch.ones(way, columns, channels, height, width)
    for n in range(way):
        of_class = images[labels == n][:columns]
        cells[n, : len(of_class)] = of_class.detach().float().cpu().clamp(0, 1)
    cells = F.pad(cells, (edge, edge, edge, edge), value=1.0)
    return cells.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)


def _label(index: int, class_names: Sequence[str] | None, length: int = 28) -> str:
    """A class's name, or its number, short and in characters that every font has."""
    name = f"class {index}" if class_names is None else class_names[index]
    text = name.encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= length else "..." + text[3 - length :]
