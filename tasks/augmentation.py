"""Random augmentation of training images: drawn for each image, applied to a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Share
from fewshot_blo.tasks.batch import send
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.inputs import as_inputs

# One column of draws per transform: changing one setting leaves the draws of the others unchanged.
_FLIP, _TURN, _DOWN, _RIGHT, _ANGLE, _BRIGHTNESS, _CONTRAST, _SATURATION = range(8)


@checked
@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of training images; all transforms are off by default.

    Order: flip, quarter turns, crop, rotation, brightness, contrast, saturation. Pixels from
    outside the image are zero. Colours change, and are clipped to [0, 1], as in torchvision's
    ``ColorJitter``, but always in this order.

    Attributes:
        flip: probability of a horizontal flip.
        quarter_turns: rotate by 0, 90, 180 or 270 degrees with equal probability; the class stays
            the same.
        crop: zero padding in pixels at each side before a random crop to the original size.
        rotation: largest rotation angle in degrees, in either direction.
        brightness: strength b of the brightness change; its factor is uniform in [1 - b, 1 + b].
        contrast: strength c of the contrast change; its factor, uniform in [1 - c, 1 + c], scales
            the distance to the image's mean grey.
        saturation: strength s of the saturation change; its factor, uniform in [1 - s, 1 + s],
            scales the distance to each pixel's grey. Needs RGB images.

    Raises:
        DataError: if a setting is out of range.
    """

    flip: Share = 0.0
    quarter_turns: bool = False
    crop: Annotated[int, AtLeast(0), AtMost(8192)] = 0
    rotation: Annotated[float, AtLeast(0), AtMost(180)] = 0.0
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0

    @property
    def active(self) -> bool:
        """Whether any transform is on."""
        return self != Augmentation()

    def check(self, image: Sequence[int]) -> None:
        """Checks that images of shape ``(C, H, W)`` can be augmented.

        Raises:
            DataError: if quarter turns are on and images are not square, or saturation is on and
                images are not RGB.
        """
        channels, height, width = image
        if self.quarter_turns and height != width:
            raise DataError(
                f"images are {height}x{width}: quarter turns need square images; set size, or "
                "quarter_turns to false"
            )
        if self.saturation and channels != 3:
            raise DataError(
                f"images have {channels} channels: saturation needs 3; set it to 0, or read the "
                "images in colour"
            )

    def __call__(self, images: Tensor, draws: Tensor, dtype: torch.dtype) -> Tensor:
        """Augments images; returns intensities ``[B, C, H, W]`` in [0, 1] on the images' device.

        Args:
            images: ``[B, C, H, W]``, uint8.
            draws: uniform numbers ``[B, 8]`` from ``draw``.
            dtype: dtype of the result; the computation uses float32 or higher.

        Raises:
            DataError: as in ``check``.
        """
        self.check(images.shape[1:])
        draws = send(draws, images.device)
        working = torch.promote_types(dtype, torch.float32)
        x = as_inputs(self._moved(images, draws), images.device, working)
        if self.rotation:
            x = self._rotated(x, draws[:, _ANGLE])
        for strength, column in (
            (self.brightness, _BRIGHTNESS),
            (self.contrast, _CONTRAST),
            (self.saturation, _SATURATION),
        ):
            if strength:
                factor = (1 + strength * (2 * draws[:, column] - 1)).to(working)
                x = torch.lerp(_origin(x, column), x, factor.reshape(-1, 1, 1, 1)).clamp_(0, 1)
        return x.to(dtype)

    def _moved(self, images: Tensor, draws: Tensor) -> Tensor:
        """Flips, quarter turns and crops: these move pixels without changing their values."""
        if not (self.flip or self.quarter_turns or self.crop):
            return images
        height, width = images.shape[2:]
        flip = draws[:, _FLIP] < self.flip
        turns = (draws[:, _TURN] * 4 * self.quarter_turns).long()
        odd = turns % 2 == 1
        # A rotation by 90 degrees is a transpose followed by a vertical flip.
        upside_down = (turns == 1) ^ (turns == 2) ^ (flip & odd)
        left_to_right = (turns == 2) ^ (turns == 3) ^ (flip & ~odd)
        if self.quarter_turns:
            images = torch.where(odd.reshape(-1, 1, 1, 1), images.mT, images)
        places = 2 * self.crop + 1
        y = self._positions(height, (draws[:, _DOWN] * places).long(), upside_down)
        x = self._positions(width, (draws[:, _RIGHT] * places).long(), left_to_right)
        images = F.pad(images, (self.crop,) * 4)
        images = images.gather(
            2, y[:, None, :, None].expand(-1, images.shape[1], -1, images.shape[3])
        )
        return images.gather(3, x[:, None, None].expand(-1, *images.shape[1:3], -1))

    def _positions(self, size: int, start: Tensor, flipped: Tensor) -> Tensor:
        """Row or column indices ``[B, size]`` of the padded image that the crop takes."""
        positions = start[:, None] + torch.arange(size, device=start.device)
        last = size + 2 * self.crop - 1
        return torch.where(flipped[:, None], last - positions, positions)

    def _rotated(self, x: Tensor, draws: Tensor) -> Tensor:
        """Rotates about the centre, counter-clockwise for positive angles, bilinear."""
        angle = torch.deg2rad(self.rotation * (2 * draws - 1)).to(x.dtype)
        cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        height, width = x.shape[2:]
        rows = [cosine, -sine * height / width, zero, sine * width / height, cosine, zero]
        grid = F.affine_grid(
            torch.stack(rows, 1).reshape(-1, 2, 3), list(x.shape), align_corners=False
        )
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def draw(seed: int, tasks: Sequence[int], images: int, part: int) -> Tensor:
    """Uniform numbers in [0, 1) ``[T * images, 8]`` for the images of tasks, float64 on the CPU.

    The numbers of a task depend only on the seed, the task's number and the part.

    Args:
        seed: seed of the sampler.
        tasks: task numbers.
        images: number of images per task.
        part: 0 for the support set, 1 for the query set.
    """
    # The spawn key gives a stream independent of the one that draws the task itself.
    streams = (np.random.SeedSequence((seed, task), spawn_key=(part,)) for task in tasks)
    return torch.from_numpy(
        np.concatenate([np.random.default_rng(stream).random((images, 8)) for stream in streams])
    )


def _origin(x: Tensor, column: int) -> Tensor:
    """The images at factor 0: black, mean grey of the image, or grey of each pixel."""
    if column == _BRIGHTNESS:
        return x.new_zeros(1).expand_as(x)
    grey = x
    if x.shape[1] == 3:
        red, green, blue = torch.split(x, 1, 1)
        grey = 0.2989 * red + 0.587 * green + 0.114 * blue
    return (grey.mean((1, 2, 3), keepdim=True) if column == _CONTRAST else grey).expand_as(x)
