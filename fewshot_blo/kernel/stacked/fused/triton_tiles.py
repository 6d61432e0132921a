# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""What the Triton kernels of norms share: tiles of rows, and how programs share them.

The kernels are the functions of ``norm_pool.c``, and read and write each value once. Images are
contiguous ``[groups, images, height, width, channels]``; vectors over channels are
``[groups, channels]``. Images may be bfloat16: sums and vectors are then float32.

A program has one group, some columns of channels and tiles of rows. Rows are pixels, or 2×2 windows
where there is pooling; at an odd edge a window has pixels that do not exist, and is not pooled.
Sums of a program go to a place of their own and are added afterwards in a fixed order, so that
results are the same bit for bit in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 1024
"""Entries of a tile at each corner of the windows."""

COLUMNS = 64
"""Channels of a tile, at most."""

PROGRAMS = 4096
"""Programs that share the sums of all groups: enough for any device, whatever its size."""


@triton.jit
def window_pixels(tile, images, height, width, POOL: tl.constexpr, ROWS: tl.constexpr):
    """Of a tile of windows: upper left pixels, pooled pixels, and which pixels exist."""
    index = tile * ROWS + tl.arange(0, ROWS)
    high = (height + POOL - 1) // POOL
    wide = (width + POOL - 1) // POOL
    image = index // (high * wide)
    rest = index % (high * wide)
    h = rest // wide
    w = rest % wide
    there = image < images
    right = there & (POOL * w + 1 < width)
    below = there & (POOL * h + 1 < height)
    pixel = (image.to(tl.int64) * height + POOL * h) * width + POOL * w
    pooled = (image.to(tl.int64) * (height // POOL) + h) * (width // POOL) + w
    return pixel, pooled, there, right, below


@triton.jit
def larger(a, b):
    """The larger of two, NaN where one is."""
    return tl.where((b > a) | (b != b), b, a)


@triton.jit
def read(pointer, mask, REAL: tl.constexpr):
    return tl.load(pointer, mask=mask, other=0).to(REAL)


@triton.jit
def write(pointer, value, mask):
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


class Tiling:
    """How the rows of all groups are shared out to programs.

    Args:
        vectors: ``[G, C]``, of the type that sums have.
        rows: of a group.
    """

    def __init__(self, vectors: Tensor, rows: int) -> None:
        groups, channels = vectors.shape
        columns = min(COLUMNS, triton.next_power_of_2(channels))
        height = TILE // columns
        real = tl.float64 if vectors.dtype == torch.float64 else tl.float32
        across = triton.cdiv(channels, columns)
        self.tiles = max(1, triton.cdiv(rows, height))
        self.blocks = min(self.tiles, max(1, PROGRAMS // max(1, groups * across)))
        self.constants = height, columns, real
        self.by_tiles = groups * self.tiles, across
        self.by_blocks = groups * self.blocks, across
        self.by_groups = groups, across


def add_blocks(partial: Tensor, *sums: Tensor) -> None:
    for part, total in zip(partial, sums, strict=True):
        torch.sum(part, 1, out=total)
