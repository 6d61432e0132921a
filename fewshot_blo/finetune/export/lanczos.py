"""The centred square of a picture, resized as Pillow does, from tensor operations alone."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fewshot_blo.tasks.reading.images import square

_LOBES = 3
_UNIT = 2.0**-22
"""Pillow rounds its weights to multiples of it."""


class SquareLanczos(nn.Module):
    """Resizes the largest centred square of pictures to S×S pixels with the Lanczos filter.

    It computes ``ImageOps.fit(picture, (S, S), LANCZOS)`` of Pillow, bit for bit, as two matrix
    products: along one axis, then along the other, each rounded to 8 bits. The weights are
    functions of the picture's height and width, so that an exported graph takes any size.

    Args:
        size: S, in pixels.
        columns_first: resize the columns before the rows if the height shrinks by more than twice
            as many pixels as the width, as Pillow 13 does; else the rows are always first. The
            order matters where a sum leaves 0 to 255 and is clipped.

    Source: Pillow, src/libImaging/Resample.c.
    """

    pi: Tensor

    def __init__(self, size: int, *, columns_first: bool) -> None:
        super().__init__()
        # A buffer, for the ONNX exporter rounds numbers in the code to float32.
        pi = torch.tensor(math.pi, dtype=torch.float64)
        self.register_buffer("pi", pi, persistent=False)
        self.size, self.columns_first = size, columns_first

    def forward(self, pixels: Tensor) -> Tensor:
        """Values 0 to 255 in float64, ``[B, C, S, S]``, of uint8 pictures ``[B, H, W, C]``."""
        height, width = (torch.full((), n, dtype=torch.float64) for n in pixels.shape[1:3])
        side = torch.minimum(height, width)
        inputs = (
            pixels.permute(0, 3, 1, 2).double(),
            self._weights(width, side, pixels.shape[2], axis=1),
            self._weights(height, side, pixels.shape[1], axis=0),
        )
        if not self.columns_first:
            return _rows_first(*inputs)
        shrinks = height - self.size
        tall = (shrinks > 0) & (shrinks > 2 * (width - self.size))
        if torch.compiler.is_exporting():
            found: Tensor = torch.cond(tall, _columns_first, _rows_first, inputs)
            return found
        return _columns_first(*inputs) if tall else _rows_first(*inputs)

    def _weights(self, length: Tensor, side: Tensor, count: int, axis: int) -> Tensor:
        """Weights that resize the middle ``side`` of ``length`` pixels to S.

        They are ``[S, count]``, or ``[count, S]`` with S on axis 1. These are not transposed
        afterwards: before 1.24 ONNX Runtime fuses that with the product, and then has no float64.
        """
        places = torch.arange(count).double().unsqueeze(axis)
        scale = side / self.size
        stretch = scale.clamp(min=1)
        centres = (length - side) / 2 + (torch.arange(self.size).double() + 0.5) * scale
        centres = centres.unsqueeze(1 - axis)
        # The filter's window ends at whole pixels. Where an end is negative, Pillow truncates and
        # ``floor`` does not, but the picture's margin is at zero in either case.
        first = (centres - _LOBES * stretch + 0.5).floor()
        end = (centres + _LOBES * stretch + 0.5).floor()
        inside = (places >= first) & (places < end)
        weights = self._lanczos((places - centres + 0.5) / stretch) * inside
        weights = weights / weights.sum(1 - axis, keepdim=True)
        whole = weights / _UNIT
        nearest = (whole.abs() + 0.5).floor() * whole.sign()  # Halves away from zero.
        return nearest * _UNIT

    def _lanczos(self, x: Tensor) -> Tensor:
        """``sinc(x) sinc(x / 3)`` within three lobes, and zero outside."""
        return torch.where(x.abs() < _LOBES, self._sinc(x) * self._sinc(x / _LOBES), 0.0)

    def _sinc(self, x: Tensor) -> Tensor:
        # Not torch.sinc, which ONNX lacks.
        angle = self.pi * torch.where(x == 0, 1.0, x)
        return torch.where(x == 0, 1.0, angle.sin() / angle)


def as_pillow(size: int) -> SquareLanczos:
    """A module that resizes to S×S pixels as the installed Pillow does.

    The order of Pillow's two passes depends on its version, so that it is found by a picture on
    which the orders differ.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (90, 10, 3), dtype=np.uint8)
    expected = torch.from_numpy(square(Image.fromarray(pixels), size=20))
    found = SquareLanczos(20, columns_first=True)(torch.from_numpy(pixels)[None])[0]
    return SquareLanczos(size, columns_first=torch.equal(found, expected.double()))


def _rows_first(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _rounded(columns @ _rounded(x @ rows))


def _columns_first(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _rounded(_rounded(columns @ x) @ rows)


def _rounded(x: Tensor) -> Tensor:
    return (x + 0.5).floor().clamp(0, 255)
