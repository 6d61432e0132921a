"""Several images from what a caller gives: a sequence, an array of paths or of pixels, a folder."""

from __future__ import annotations

from collections.abc import Iterable
from io import IOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.images import Source
from fewshot_blo.tasks.reading.walk import walk

_KINDS = (str, Path, bytes, Image.Image, np.ndarray, Tensor, IOBase)


def several(images: Any) -> list[Source]:
    """The single images, each for ``open_image``.

    Args:
        images: a sequence or array of images of any kind, an array ``[M, H, W]`` or
            ``[M, H, W, C]``, a tensor ``[M, H, W]`` or ``[M, C, H, W]``, or the path of a folder,
            whose images are taken in the order of their paths.

    Raises:
        DataError: if it is one image or none.
    """
    if isinstance(images, str | Path):
        return _of_folder(Path(images))
    if isinstance(images, bytes | Image.Image | IOBase):
        raise DataError(f"one image was given, a {type(images).__name__}: give a list, [image]")
    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":
        return several(images.ravel().tolist())  # Paths, or images of different sizes.
    if isinstance(images, np.ndarray | Tensor):
        return _of_array(images)
    found = list(images) if isinstance(images, Iterable) else []
    if not found:
        raise DataError(f"{_shown(images)} holds no images: give a list of them")
    for number, image in enumerate(found):
        if not isinstance(image, _KINDS):
            raise DataError(
                f"the list holds no images: item {number} is {_shown(image)}; give paths, Pillow "
                "images or arrays (height, width, channels)"
            )
    return found


def _of_folder(path: Path) -> list[Source]:
    if not path.is_dir():
        raise DataError(f"one path was given, '{path}': give a list of paths, ['{path}']")
    found = walk(path)
    if not found.files:
        said = "".join(f" ({sentence})" for sentence in found.notes())
        raise DataError(f"{path} holds no images{said}: name another folder")
    return list(found.files)


def _of_array(images: NDArray[Any] | Tensor) -> list[Source]:
    shape = tuple(images.shape)
    if len(shape) not in (3, 4) or 0 in shape:
        one = ", or one alone: give a list, [image]" if len(shape) == 2 else ""
        raise DataError(
            f"an array of shape {shape} holds no images{one}; images are (number, height, width, "
            "channels) or (number, height, width), and tensors have their channels second"
        )
    # Three or four rows of pixels, or columns, are no image: they are channels.
    if len(shape) == 3 and (shape[2] in (3, 4) or (torch.is_tensor(images) and shape[0] in (3, 4))):
        raise DataError(
            f"one image of shape {shape} was given, not several: add the first axis, [image]"
        )
    return list(images)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"
