"""A small backbone and coloured images of three classes."""

from __future__ import annotations

import numpy as np
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


def picture(colour: int, number: int) -> Image.Image:
    """Mostly one channel, with noise."""
    rng = np.random.default_rng((colour, number))
    pixels = rng.integers(0, 120, (20, 24, 3))
    pixels[..., colour] += 110
    return Image.fromarray(pixels.astype(np.uint8))
