"""``episode_picture``: a PNG of few-shot tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewshot_blo.records.figure import save_figure
from fewshot_blo.tasks.batch import TaskBatch
from fewshot_blo.tasks.episode_figure import draw_episodes
from fewshot_blo.tasks.errors import DataError


def episode_picture(
    batch: TaskBatch, path: Path, *, class_names: Sequence[str] | None = None, tasks: int = 4
) -> None:
    """Writes a PNG of a batch's first tasks: one row per class, shots beside some queries.

    Args:
        batch: grey ``[T, rows, 1, H, W]`` or RGB ``[T, rows, 3, H, W]`` images in [0, 1].
        path: path of the PNG, which is written atomically.
        class_names: the data set's class names, indexed by ``batch.classes``; numbers by default.
        tasks: largest number of tasks to show.

    Raises:
        DataError: if there is no task to show, or images are neither grey nor RGB.
    """
    if not batch.is_pictures:
        raise DataError(
            f"{batch!r} has no pictures: they need classes, and support_x and query_x of shape "
            "[tasks, rows, 1 or 3, height, width]"
        )
    shown = min(tasks, batch.tasks)
    if shown < 1:
        raise DataError(
            f"tasks is {tasks} and the batch has {batch.tasks}: both must be at least 1"
        )
    save_figure(draw_episodes(*batch[:shown].pictures, class_names), path)
