from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot_blo.finetune import read_labelled
from fewshot_blo.tasks import DataError


def test_counts_may_differ_and_names_be_in_any_script(make_folder: Callable[..., Path]) -> None:
    data = read_labelled(make_folder(1, 3, 2), 16)
    assert data.class_names == ("blue & <b>", "groß 緑", "red")
    assert data.counts.tolist() == [2, 3, 1]
    assert data.images.shape == (6, 3, 16, 16)
    assert data.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert not data.left_out


def test_images_of_every_kind(make_folder: Callable[..., Path]) -> None:
    root = make_folder(1, 1)
    red = root / "red"
    Image.new("RGB", (1, 1), (250, 0, 0)).save(red / "one_pixel.png")
    Image.new("CMYK", (9, 5), (0, 200, 200, 0)).save(red / "cmyk.jpg")
    levels = (np.arange(30 * 20).reshape(20, 30) * 100).astype(np.uint16)
    Image.fromarray(levels).save(red / "16.png")
    frames = [Image.new("RGB", (8, 8), (level, 0, 0)) for level in (200, 100)]
    frames[0].save(red / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (8, 8), (255, 0, 0, 100)).save(red / "transparent.png")
    data = read_labelled(root, 16)
    assert data.counts.tolist() == [1, 6]


def test_unreadable_images_are_all_named_or_left_out(make_folder: Callable[..., Path]) -> None:
    root = make_folder(2, 2)
    for name in ("a.png", "b.jpg"):
        (root / "red" / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"(?s)2 of 6 images cannot be read.*a\.png.*b\.jpg.*skip"):
        read_labelled(root, 16)
    data = read_labelled(root, 16, skip_unreadable=True)
    assert data.counts.tolist() == [2, 2]
    assert len(data.left_out) == 2
    for file in (root / "red").glob("[01].png"):
        file.unlink()
    with pytest.raises(DataError, match="class 'red' has no image that can be decoded"):
        read_labelled(root, 16, skip_unreadable=True)


def test_one_image_twice(make_folder: Callable[..., Path]) -> None:
    root = make_folder(2, 2)
    shutil.copy(root / "red" / "0.png", root / "red" / "again.png")
    data = read_labelled(root, 16)
    assert data.counts.tolist() == [2, 2]
    assert "again.png is the same image as" in data.left_out[0]
    shutil.copy(root / "red" / "0.png", root / "groß 緑" / "wrong.png")
    with pytest.raises(DataError, match=r"same image in two classes, 'groß 緑' and 'red'"):
        read_labelled(root, 16)


def test_too_few_classes_and_empty_ones(make_folder: Callable[..., Path]) -> None:
    root = make_folder(1)
    with pytest.raises(DataError, match="has 1 class subfolders: it must have at least 2"):
        read_labelled(root, 16)
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no images"):
        read_labelled(root, 16)
    with pytest.raises(DataError, match="is not a folder"):
        read_labelled(root / "red" / "0.png", 16)
