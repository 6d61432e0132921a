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


def smooth(number: int) -> Image.Image:
    """Something like a photograph: spots of all sizes, whatever size it is shown at."""
    rng = np.random.default_rng(number)
    pixels = np.zeros((64, 64, 3))
    for side in (4, 8, 16, 32):
        spots = Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8))
        pixels += np.asarray(spots.resize((64, 64), Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(pixels.astype(np.uint8))


def noisy(image: Image.Image, number: int) -> Image.Image:
    """The image with noise."""
    pixels = np.asarray(image) + np.random.default_rng(number).normal(0, 5, (64, 64, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
