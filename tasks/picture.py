"""Pictures of tasks, for a person to look at."""

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
    """Writes a PNG of a batch's first tasks: a row a class, its shots beside some of its queries.

    Args:
        batch: grey ``[T, rows, 1, H, W]`` or RGB ``[T, rows, 3, H, W]`` images in [0, 1].
        path: where the picture goes, whole or not at all.
        class_names: of the data set, to which ``batch.classes`` points; numbers if not given.
        tasks: how many tasks to show at most.

    Raises:
        DataError: if no task is to be shown, or images are neither grey nor RGB.
    """
    if not batch.is_pictures:
        raise DataError(
            f"support_x has shape {list(batch.support_x.shape)}: a picture needs [tasks, rows, "
            "1 or 3, height, width]"
        )
    shown = min(tasks, batch.tasks)
    if shown < 1:
        raise DataError(f"tasks is {tasks} of a batch of {batch.tasks}: show at least one")
    save_figure(draw_episodes(*batch[:shown].tensors, class_names), path)
