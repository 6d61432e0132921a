"""What a model is given to label: images in any of the usual ways, and labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks.reading.images import Source, read_image

Images = Tensor | Sequence[Source]
"""Images ``[B, C, H, W]``, uint8 or in [0, 1]; or paths, Pillow images, arrays ``[H, W, C]``."""


def as_images(images: Images, shape: tuple[int, ...], name: str) -> Tensor:
    """Images ``[B, C, H, W]`` with intensities in [0, 1].

    Args:
        images: tensors, paths, Pillow images or arrays.
        shape: shape of one image, ``[C, H, W]``.
        name: what the images are, for errors.

    Raises:
        ConfigurationError: if there are none, or shape or values do not fit.
        DataError: if an image cannot be read.
    """
    if not isinstance(images, Tensor):
        color, size = shape[0] == 3, shape[1]
        pixels = [torch.tensor(read_image(i, size=size, color=color)) for i in images]
        images = torch.stack(pixels) if pixels else torch.zeros(0)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape or not len(images):
        sides = ", ".join(map(str, shape))
        raise ConfigurationError(
            f"{name} has shape {list(images.shape)}: it must be [B, {sides}] with at least one "
            "image, or a list of paths or Pillow images"
        )
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
        raise ConfigurationError(
            f"{name} has type {images.dtype} and values from {float(images.min()):.4g} to "
            f"{float(images.max()):.4g}: give intensities in [0, 1], or uint8"
        )
    return images


def as_labels(labels: Tensor | Sequence[int], count: int) -> Tensor:
    """Labels int64 ``[count]``, which are 0 to N-1, each at least once.

    Raises:
        ConfigurationError: if they are not.
    """
    known = torch.as_tensor(labels).cpu()
    whole = not known.is_floating_point() and known.dtype != torch.bool
    if known.shape != (count,) or not whole:
        raise ConfigurationError(
            f"labels have type {known.dtype} and shape {list(known.shape)}: they must be integers, "
            f"one for each of the {count} support images"
        )
    known = known.long()
    found = known.unique().tolist()
    if found != list(range(len(found))):
        raise ConfigurationError(
            f"labels are {found[:10]}: they must be 0 to N-1, each of them at least once"
        )
    return known
