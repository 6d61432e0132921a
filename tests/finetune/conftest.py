"""A small backbone and folders of images."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fewshot_blo.backbones import Backbone, Preprocessing

NAMES = ("red", "groß 緑", "blue & <b>")


def network() -> Backbone:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1)
    )
    return Backbone(body, Preprocessing(16, (0.5,) * 3, (0.25,) * 3))


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the backbone, as ``module:function``."""
    module: Any = types.ModuleType("small_networks")
    module.network, module.unsized = network, lambda: nn.Conv2d(3, 4, 3)
    monkeypatch.setitem(sys.modules, "small_networks", module)
    return "small_networks:network"


def picture(colour: int, number: int) -> Image.Image:
    """Mostly one channel, with noise."""
    rng = np.random.default_rng((colour, number))
    pixels = rng.integers(0, 120, (20, 24, 3))
    pixels[..., colour] += 110
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder of so many images of each class."""

    def make(*counts: int, name: str = "images") -> Path:
        root = tmp_path / name
        for colour, count in enumerate(counts):
            folder = root / NAMES[colour]
            folder.mkdir(parents=True)
            for number in range(count):
                picture(colour, number).save(folder / f"{number}.png")
        return root

    return make
