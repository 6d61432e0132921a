from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import noisy, picture, smooth

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune import LabelledImages, read_labelled
from fewshot_blo.finetune.images import as_pixels
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
    with pytest.raises(DataError, match="1 class has images that can be decoded: there must be"):
        read_labelled(root, 16, skip_unreadable=True)
    picture(2, 0).save(root.parent / "blue.png")
    (root / "blue").mkdir()
    (root.parent / "blue.png").rename(root / "blue" / "0.png")
    data = read_labelled(root, 16, skip_unreadable=True)
    assert data.class_names == ("blue", "groß 緑")
    assert data.notes == ("1 class 'red' passed over: no image can be decoded",)


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
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="has 1 class subfolder with images and 1 image; at least"):
        read_labelled(root, 16)
    with pytest.raises(DataError, match="holds no table of images"):
        read_labelled(root / "red" / "0.png", 16)
    with pytest.raises(DataError, match="is not a folder"):
        read_labelled(root / "nowhere", 16)
    picture(1, 0).save(root / "empty" / "0.png")
    (root / "other").mkdir()
    data = read_labelled(root, 16)
    assert data.class_names == ("empty", "red")
    assert data.notes == ("1 folder without images passed over: 'other'",)


def test_copies_with_noise_are_one_group(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3, 3)
    photograph = smooth(0)
    for number in range(3):
        noisy(photograph, number).save(root / "red" / f"copy{number}.png")
    noisy(photograph, 9).save(root / "groß 緑" / "copy.png")
    data = read_labelled(root, 64)
    sizes = torch.bincount(data.groups)
    assert sizes[sizes > 0].tolist() == [1] * 7 + [3]
    one = [file for file, group in zip(data.files, data.groups, strict=True) if sizes[group] > 1]
    assert [Path(file).name for file in one] == ["copy0.png", "copy1.png", "copy2.png"]
    assert "3 images are nearly the same as others of their class, in 1 group," in data.notes[0]
    assert "are nearly the same image in two classes, 'groß 緑' and 'red'" in data.notes[1]


def test_a_test_folder_is_held_out_without_what_was_trained_on(tmp_path: Path) -> None:
    for number in range(8):
        folder = tmp_path / ("train" if number < 4 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        smooth(number).save(folder / f"{number}.png")
    shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / "test" / "a" / "same.png")
    noisy(smooth(1), 5).save(tmp_path / "test" / "b" / "near.png")
    data = read_labelled(tmp_path, 64)
    assert data.counts.tolist() == [2, 2]
    assert data.held_out is not None
    assert data.held_out.class_names == data.class_names
    assert [Path(file).name for file in data.held_out.files] == ["4.png", "6.png", "5.png", "7.png"]
    assert data.held_out.labels.tolist() == [0, 0, 1, 1]
    assert "same.png is the same image as" in data.left_out[0]
    assert "near.png is nearly the same as" in data.left_out[1]
    assert "6 held-out images kept for measuring the accuracy" in data.notes[0]


def test_one_colour_is_said(make_folder: Callable[..., Path]) -> None:
    root = make_folder(2, 2)
    Image.new("RGB", (9, 9), (7, 8, 9)).save(root / "red" / "blank.png")
    (note,) = read_labelled(root, 16).notes
    assert note == f"1 image has one colour everywhere: check {root / 'red' / 'blank.png'}"


def test_groups_are_of_each_image() -> None:
    images, labels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1])
    assert LabelledImages(images, labels, ("a", "b"), ()).groups.tolist() == [0, 1, 2]
    with pytest.raises(ConfigurationError, match="one group per image"):
        LabelledImages(images, labels, ("a", "b"), (), groups=torch.zeros(2))


def test_images_of_any_kind_as_pixels(tmp_path: Path) -> None:
    image = smooth(0)
    image.save(tmp_path / "a.png")
    expected = as_pixels([tmp_path / "a.png"], 16)
    array = np.array(image)
    many = torch.from_numpy(array).permute(2, 0, 1)[None]
    for given in (
        tmp_path,
        str(tmp_path),
        [str(tmp_path / "a.png")],
        np.array([str(tmp_path / "a.png")]),
        np.array([tmp_path / "a.png"], dtype=object),
        [(tmp_path / "a.png").read_bytes()],
        [image],
        [array],
        array[None],
        many,
        many.double() / 255,
        (item for item in [image]),
    ):
        assert torch.equal(as_pixels(given, 16), expected)
    assert as_pixels(expected, 16) is expected


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("a.png", r"one path was given, 'a.png': give a list of paths, \['a.png'\]"),
        (np.zeros((32, 32, 3), np.uint8), "one image of shape .* was given, not several"),
        (torch.zeros(3, 32, 32), "one image of shape .* was given, not several"),
        (np.zeros((32, 32)), "one alone: give a list"),
        (np.zeros(5), "holds no images"),
        (Image.new("L", (4, 4)), r"one image was given, a Image: give a list, \[image\]"),
        (b"content", "one image was given, a bytes"),
        ([], "holds no images: give a list"),
        (7, "7 holds no images"),
        ([1, 2], "item 0 is 1; give paths"),
        (["http://here/a.png"], "download it first"),
        ([np.zeros((5, 4, 7))], r"shape \(5, 4, 7\) is not that of one image"),
        ([np.full((4, 4), np.nan)], r"values in \[0, 1\]"),
        ([np.full((4, 4), 1j)], "they must be numbers"),
    ],
)
def test_what_is_no_list_of_images(given: object, match: str) -> None:
    with pytest.raises(DataError, match=match):
        as_pixels(given, 16)
