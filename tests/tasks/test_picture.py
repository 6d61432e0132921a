from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_blo.tasks import ClassDataset, DataError, EpisodicSampler, TaskBatch
from fewshot_blo.tasks.picture import episode_picture


def batch(
    channels: int = 1, *, way: int | tuple[int, int] = 3, shot: int = 2, tasks: int = 2
) -> TaskBatch:
    shades = torch.arange(8).mul(25).add(50).byte().repeat_interleave(6)
    images = shades[:, None, None, None].repeat(1, channels, 10, 10)
    if channels == 3:
        images[:, 1:] = 0
    labels = torch.arange(8).repeat_interleave(6)
    dataset = ClassDataset(images, labels, tuple(f"class{c}" for c in range(8)))
    return EpisodicSampler(dataset, way=way, shot=shot, query=3, tasks=tasks).batch(0)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
def test_shows_the_images_of_every_class(tmp_path: Path, channels: int) -> None:
    tasks = batch(channels, tasks=1)
    episode_picture(tasks, tmp_path / "tasks.png")
    drawn = {
        tuple(colour) for colour in np.unique(pixels(tmp_path / "tasks.png").reshape(-1, 3), axis=0)
    }
    for index in tasks.classes[0].tolist():
        shade = 50 + 25 * index
        assert ((shade, 0, 0) if channels == 3 else (shade, shade, shade)) in drawn


def test_taller_with_more_tasks_and_no_taller_than_asked(tmp_path: Path) -> None:
    heights = []
    for tasks in (1, 2, 9):
        episode_picture(batch(tasks=3), tmp_path / "tasks.png", tasks=tasks)
        heights.append(pixels(tmp_path / "tasks.png").shape[0])
    assert heights[0] < heights[1] < heights[2] < 4 * heights[0]


def test_padded_tasks(tmp_path: Path) -> None:
    tasks = batch(way=(2, 5), tasks=6)
    assert tasks.padded
    episode_picture(tasks, tmp_path / "tasks.png", tasks=6)
    assert pixels(tmp_path / "tasks.png").min() < 255


def test_any_name_can_be_shown(tmp_path: Path) -> None:
    # Characters the font lacks warn, and unpaired or paired dollars are not mathematics.
    names = ["一丁", "$x", "$\\nonsense$", "a\nb", "ᐁ", "", "x" * 200, "plain"]
    episode_picture(batch(way=8), tmp_path / "tasks.png", class_names=names)
    assert pixels(tmp_path / "tasks.png").shape[1] < 2000


def test_leaves_no_global_state(tmp_path: Path) -> None:
    episode_picture(batch(), tmp_path / "tasks.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_what_cannot_be_drawn_is_named_and_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tasks.png"
    path.write_bytes(b"before")
    with pytest.raises(DataError, match="tasks is 0"):
        episode_picture(batch(), path, tasks=0)
    with pytest.raises(DataError, match="has no pictures"):
        episode_picture(batch(channels=2), path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
