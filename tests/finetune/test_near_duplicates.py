"""Images that are nearly the same: real photographs where they are at hand, else random spots."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from small_images import noisy, smooth
from torch import Tensor

from fewshot_blo.finetune.near_duplicates import near_duplicates

DATA = Path(os.environ.get("FEWSHOT_BLO_DATA", Path(__file__).parents[3] / "shared" / "data"))
PHOTOGRAPHS = DATA / "tinyimagenet" / "tiny_tiered.zip"


def jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=30)
    return Image.open(stream).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "noise": lambda image: noisy(image, 0),
    "JPEG": jpeg,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "moved": lambda image: image.crop((4, 2, 64, 62)).resize((64, 64)),
    "enlarged": lambda image: image.crop((3, 3, 61, 61)).resize((64, 64)),
    "mirrored": ImageOps.mirror,
    "smaller": lambda image: image.resize((40, 40)).resize((64, 64)),
}


def pixels(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def photographs(classes: int, each: int) -> list[Image.Image]:
    if not PHOTOGRAPHS.exists():
        pytest.skip("needs tinyimagenet in FEWSHOT_BLO_DATA")
    by_class: dict[str, list[str]] = {}
    with zipfile.ZipFile(PHOTOGRAPHS) as archive:
        for name in archive.namelist():
            if name.endswith(".JPEG"):
                by_class.setdefault(name.split("/")[1], []).append(name)
        names = [name for own in list(by_class.values())[:classes] for name in own[:each]]
        return [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_of_one_group(change: str) -> None:
    images = [smooth(number) for number in range(6)]
    copies = [CHANGES[change](image) for image in images]
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1])
    groups, across = near_duplicates(pixels(images + copies), labels)
    assert groups.tolist() == [*range(6), *range(6)]
    assert across == []


@pytest.mark.parametrize("change", CHANGES)
def test_changed_photographs_are_of_one_group(change: str) -> None:
    images = photographs(10, 4)
    copies = [CHANGES[change](image) for image in images]
    labels = torch.arange(10).repeat_interleave(4).repeat(2)
    groups, _ = near_duplicates(pixels(images + copies), labels)
    assert groups[:40].tolist() == list(range(40))
    assert (groups[40:] == groups[:40]).double().mean() >= 0.9


def test_different_photographs_are_of_no_group() -> None:
    images = pixels(photographs(20, 50))
    groups, across = near_duplicates(images, torch.arange(20).repeat_interleave(50))
    assert groups.tolist() == list(range(1000))
    assert across == []


def test_two_classes_are_told_and_not_grouped() -> None:
    images = pixels([*map(smooth, range(6)), noisy(smooth(1), 1)])
    groups, across = near_duplicates(images, torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    assert groups.tolist() == list(range(7))
    assert across == [(1, 6)]


def test_chains_are_one_group_and_its_name_the_first_row() -> None:
    """Frames of a video that moves on: the first and last have little in common."""
    wide = smooth(0).resize((128, 64))
    frames = [wide.crop((4 * n, 0, 4 * n + 64, 64)) for n in (3, 1, 0, 2, 4, 5, 6, 7, 8)]
    groups, _ = near_duplicates(pixels([smooth(1), *frames]), torch.zeros(10, dtype=torch.int64))
    assert groups.tolist() == [0] + [1] * 9


def test_pictures_that_are_all_alike_are_told_apart() -> None:
    """All images have one background and differ in a spot, as digits do."""
    spots = []
    for number in range(40):
        image = smooth(0)
        image.paste(smooth(number + 1).resize((24, 24)), (20, 20))
        spots.append(image)
    labels = torch.arange(40) % 2
    groups, across = near_duplicates(pixels(spots), labels)
    assert len(groups.unique()) > 30
    assert not across


def test_blank_images_are_like_none() -> None:
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    images[1] = 200
    groups, across = near_duplicates(images, torch.tensor([0, 0, 1, 1]))
    assert groups.tolist() == [0, 1, 2, 3]
    assert across == []


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16), (3, 224, 224), (3, 33, 33)])
def test_any_size_and_number_of_channels(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, *shape), generator=generator).to(torch.uint8)
    images[2] = images[0]
    assert near_duplicates(images, torch.tensor([0, 0, 0]))[0].tolist() == [0, 1, 0]
    assert near_duplicates(images[:1], torch.tensor([0]))[0].tolist() == [0]
