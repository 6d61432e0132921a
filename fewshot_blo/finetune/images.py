"""``LabelledImages``, the images to fine-tune on, and decoding of images given in any way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.shapes import kind
from fewshot_blo.tasks.reading.images import read_image
from fewshot_blo.tasks.reading.several import several


@dataclass(frozen=True)
class LabelledImages:
    """M images of N classes.

    Attributes:
        images: uint8 images ``[M, C, S, S]``, or precomputed floating-point features
            ``[M, D, 1, 1]``.
        labels: labels in ``0..N-1``, ``[M]``.
        class_names: N names.
        files: file names of the M images; may be empty if no report is written.
        left_out: one sentence per image that was left out, with the reason.
        groups: group of each image, ``[M]``; images of one group, such as frames of a video, are
            nearly the same and are to be held out together. Each image is its own group by default.
        held_out: images of the same classes that were set apart and are not trained on; None if
            there are none.
        notes: sentences on what was passed over, near-duplicates and doubtful images.
        bits: bits in use of images of 16 bits whose files do not state them; 0 if there are none.

    Raises:
        ConfigurationError: if there is not one group per image.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    groups: Tensor = field(default_factory=lambda: torch.arange(0))
    held_out: LabelledImages | None = None
    notes: tuple[str, ...] = ()
    bits: int = 0

    def __post_init__(self) -> None:
        if not len(self.groups):
            object.__setattr__(self, "groups", torch.arange(len(self.labels)))
        if self.groups.shape != self.labels.shape:
            raise ConfigurationError(
                f"groups have shape {list(self.groups.shape)} and labels {list(self.labels.shape)}:"
                " there must be one group per image"
            )

    def __repr__(self) -> str:
        return (
            f"LabelledImages({len(self.labels)} images of {len(self.class_names)} classes, "
            f"{list(self.images.shape[1:])} {kind(self.images)}, {len(self.left_out)} left out)"
        )

    @property
    def counts(self) -> Tensor:
        """Number of images of each class, ``[N]``."""
        return torch.bincount(self.labels, minlength=len(self.class_names))


def as_pixels(images: Any, size: int, bits: int = 0) -> Tensor:
    """Images given in any usual way, as uint8 ``[M, 3, size, size]``.

    Args:
        images: several images: uint8 tensors ``[M, 3, size, size]``, which are taken as they are,
            or a sequence or array of paths, contents of files, Pillow images, arrays ``[H, W]`` or
            ``[H, W, C]`` or tensors ``[C, H, W]``, as ``open_image`` decodes them.
        size: height and width in pixels.
        bits: as in ``open_image``.

    Raises:
        DataError: if it is one image or no images, or one cannot be decoded.
    """
    if isinstance(images, Tensor) and _are_ready(images, size):
        return images
    rows = [read_image(image, size=size, color=True, bits=bits) for image in several(images)]
    return torch.from_numpy(np.stack(rows))


def _are_ready(images: Tensor, size: int) -> bool:
    return images.dtype == torch.uint8 and images.shape == (len(images), 3, size, size)
