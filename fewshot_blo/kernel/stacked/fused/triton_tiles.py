# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Shared parts of the Triton kernels of norms: tiles of rows, and their division among programs.

The kernels are the functions of ``norm_pool.c``; they read and write each value once. Images are
contiguous ``[groups, images, height, width, channels]``; vectors over channels are
``[groups, channels]``. Images may be bfloat16: sums and vectors are then float32.

A program processes one group, some channels and some tiles of rows. Rows are pixels, or 2×2 windows
if there is pooling; a window at an odd edge is incomplete and is not pooled. Each program stores
its partial sums separately; they are added in a fixed order, so that results are bitwise identical
in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 1024
"""Entries of a tile; with pooling, at each corner of the windows."""

COLUMNS = 64
"""Largest number of channels of a tile."""

PROGRAMS = 4096
"""Number of programs among which the sums of all groups are divided, on any device."""


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
    """How the rows of all groups are divided among programs.

    Args:
        vectors: ``[G, C]``, of the dtype of sums.
        rows: number of rows of a group.
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
