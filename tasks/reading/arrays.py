"""Arrays and tensors as Pillow images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewshot_blo.tasks.reading.depth import from_unit, highest_bits, narrow

_CHANNELS = (1, 3, 4)


def as_image(pixels: NDArray[Any] | Tensor, bits: int = 0) -> Image.Image:
    """The pixels as an image of mode L, RGB or RGBA.

    Args:
        pixels: array ``[H, W]`` or ``[H, W, C]`` or tensor ``[H, W]`` or ``[C, H, W]``, where C is
            1 (grey), 3 (RGB) or 4 (RGBA). The other order is read where only that is possible.
            Integers are 0 to 255, or 0 to 65535 as ``depth.narrow`` says; floating-point numbers
            are in [0, 1]; True is white.
        bits: bits in use, at least, of integers of more than 8 bits.

    Raises:
        ValueError: for another shape, type or range.
    """
    first = isinstance(pixels, Tensor)
    array = _as_array(pixels) if isinstance(pixels, Tensor) else pixels
    return Image.fromarray(_as_bytes(_channels_last(array, first), bits))


def _as_array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16.
    array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _channels_last(array: NDArray[Any], first: bool) -> NDArray[Any]:
    """``[H, W]`` or ``[H, W, 3 or 4]``."""
    if array.size and array.ndim == 2:
        return array
    if array.size and array.ndim == 3:
        leads, ends = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
        if leads and (first or not ends):
            array, ends = array.transpose(1, 2, 0), True
        if ends:
            return array[..., 0] if array.shape[2] == 1 else array
    raise ValueError(
        f"shape {array.shape} is not that of one image: it must be (height, width) or (height, "
        "width, channels), or of a tensor (channels, height, width), with 1, 3 or 4 channels"
    )


def _as_bytes(array: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind in "ui":
        return np.ascontiguousarray(array if array.dtype == np.uint8 else narrow(array, bits))
    if kind == "f":
        return np.ascontiguousarray(from_unit(array))
    raise ValueError(f"values of type {array.dtype} are no pixels: they must be numbers")


def array_bits(pixels: NDArray[Any] | Tensor) -> int:
    """As ``depth.bits_in_use``: of integers of more than 8 bits, 0 for other values."""
    array = _as_array(pixels) if isinstance(pixels, Tensor) else pixels
    if array.dtype.kind not in "ui" or array.dtype == np.uint8 or not array.size:
        return 0
    return highest_bits(int(array.max()))


def is_pixels(value: object) -> bool:
    """Whether it is an array of numbers or a tensor."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "buif"
    return torch.is_tensor(value)
