"""``Album``: file names and thumbnails of training images, for a person who looks at them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_SIDE, _QUALITY = 96, 85
_MOST = 2000
"""Largest number of thumbnails in a file, at about 3 KB each."""
_LONGEST = 200
"""Largest number of characters of a name."""


@dataclass(frozen=True)
class Album:
    """What is known of M training images; nothing at all in files of older formats.

    Attributes:
        files: names of their files without folders, M or none.
        thumbnails: JPEG files of at most 96 pixels, M or none; empty bytes for images beyond the
            first 2000, which are taken from all classes in turn.
    """

    files: tuple[str, ...] = ()
    thumbnails: tuple[bytes, ...] = ()

    @staticmethod
    def of(images: Tensor, files: Sequence[str], labels: Tensor) -> Album:
        """The album of images.

        Args:
            images: uint8 images ``[M, C, S, S]`` with C 1 or 3; of others there are no thumbnails.
            files: paths of their M files; without any the album is empty.
            labels: their labels, ``[M]``.
        """
        if not files:
            return Album()
        names = _names(files, len(images))
        if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
            return Album(names)
        hot = torch.nn.functional.one_hot(labels)
        turns = hot.cumsum(0).gather(1, labels.unsqueeze(1)).squeeze(1)
        shown = torch.zeros(len(labels), dtype=torch.bool)
        shown[turns.argsort(stable=True)[:_MOST]] = True
        pairs = zip(images, shown.tolist(), strict=True)
        return Album(names, tuple(thumbnail(image) if yes else b"" for image, yes in pairs))

    def plus(self, images: Tensor, files: Sequence[str]) -> Album:
        """With more images behind the others; an empty album stays empty."""
        if not self.files:
            return self
        names = (*self.files, *_names(files, len(images)))
        free = _MOST - sum(map(bool, self.thumbnails))
        more = [thumbnail(image) if row < free else b"" for row, image in enumerate(images)]
        return Album(names, (*self.thumbnails, *more) if self.thumbnails else ())

    def pictures(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The thumbnails and, behind them, other images in the same way.

        Args:
            images: other images, uint8 ``[K, C, S, S]``.

        Returns:
            Pixels ``[P + K, C, s, s]``, and the places of the P thumbnails in the album.
        """
        places = [place for place, content in enumerate(self.thumbnails) if content]
        if not places:
            return images[:0], torch.zeros(0, dtype=torch.int64)
        files = [self.thumbnails[place] for place in places]
        files += [thumbnail(image) for image in images]
        pixels = np.stack([_pixels(content) for content in files])
        return torch.from_numpy(pixels), torch.tensor(places)

    def plain(self) -> dict[str, Any]:
        """As plain data: the JPEG files behind each other in one tensor, and their lengths."""
        content = np.frombuffer(b"".join(self.thumbnails), np.uint8)
        return {
            "files": list(self.files),
            "bytes": torch.from_numpy(content.copy()),
            "lengths": torch.tensor([len(item) for item in self.thumbnails], dtype=torch.int64),
        }

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Album:
        """The album that ``plain`` wrote."""
        content = bytes(plain["bytes"].numpy())
        ends = plain["lengths"].cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        parts = tuple(content[a:b] for a, b in zip(starts, ends, strict=False))
        return Album(tuple(plain["files"]), parts)


def thumbnail(image: Tensor) -> bytes:
    """A JPEG file of at most 96 pixels of a uint8 image ``[C, S, S]``."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _pixels(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _names(files: Sequence[str], images: int) -> tuple[str, ...]:
    """Names without folders, for a classifier is passed on; empty ones for images without files."""
    names = tuple(PurePath(file).name[-_LONGEST:] for file in files)
    return names or ("",) * images
