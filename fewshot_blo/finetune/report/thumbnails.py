"""Thumbnails as data URIs, within a number of bytes."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor

SMALL, LARGE = 56, 120
_QUALITY = {SMALL: 60, LARGE: 75}


class Thumbnails:
    """JPEGs of the images, at most so many bytes in all.

    Args:
        images: uint8 images ``[M, 3, S, S]``.
        budget: bytes that all thumbnails may take.
    """

    def __init__(self, images: Tensor, budget: int) -> None:
        self.images, self.left = images, budget

    def __call__(self, row: int, side: int = LARGE) -> str:
        """The data URI of an image; empty if no bytes are left.

        Args:
            row: row of the image.
            side: SMALL or LARGE, its greatest width and height in pixels.
        """
        if self.left <= 0:
            return ""
        picture = Image.fromarray(self.images[row].permute(1, 2, 0).contiguous().numpy())
        picture.thumbnail((side, side))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=_QUALITY[side])
        source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        self.left -= len(source)
        return source
