# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Triton kernels for batch moments and max-pooling."""

import triton
import triton.language as tl
from torch import Tensor

from fewshot_blo.kernel.stacked.fused.triton_tiles import Tiling, larger, read, window_pixels, write


@triton.jit
def _squares(value, mean, mask):
    """Of the distances from the mean."""
    distance = tl.where(mask, value - mean[None, :], tl.zeros_like(value))
    return distance * distance


@triton.jit
def pool_moments_kernel(
    x,
    sign,
    pooled,
    partial,
    images,
    height,
    width,
    channels,
    blocks,
    POOL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REAL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    group = program // blocks
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    has = (column < channels)[None, :]
    windows = images * ((height + POOL - 1) // POOL) * ((width + POOL - 1) // POOL)
    x += group * images * height * width * channels
    pooled += group * images * (height // POOL) * (width // POOL) * channels
    s = read(sign + group * channels + column, column < channels, REAL)[None, :]
    # As if the group's first pixel were zero, lest large means take the digits of small variances.
    origin = read(x + column, column < channels, REAL)[None, :]
    count = tl.zeros([COLUMNS], REAL)
    mean = tl.zeros([COLUMNS], REAL)
    square = tl.zeros([COLUMNS], REAL)
    for tile in range(tl.program_id(0) % blocks, tl.cdiv(windows, ROWS), blocks):
        pixel, to, there, right, below = window_pixels(tile, images, height, width, POOL, ROWS)
        at = x + pixel[:, None] * channels + column[None, :]
        m00 = there[:, None] & has
        x00 = read(at, m00, REAL)
        d00 = tl.where(m00, x00 - origin, tl.zeros_like(x00))
        total = tl.sum(d00, 0)
        number = tl.sum(there.to(tl.int32), 0)
        if POOL == 2:
            m01 = right[:, None] & has
            m10 = below[:, None] & has
            m11 = (right & below)[:, None] & has
            x01 = read(at + channels, m01, REAL)
            x10 = read(at + width * channels, m10, REAL)
            x11 = read(at + (width + 1) * channels, m11, REAL)
            best = larger(larger(s * x00, s * x01), larger(s * x10, s * x11))
            write(pooled + to[:, None] * channels + column[None, :], s * best, m11)
            d01 = tl.where(m01, x01 - origin, tl.zeros_like(x01))
            d10 = tl.where(m10, x10 - origin, tl.zeros_like(x10))
            d11 = tl.where(m11, x11 - origin, tl.zeros_like(x11))
            total = tl.sum((d00 + d01) + (d10 + d11), 0)
            number += tl.sum(right.to(tl.int32) + below.to(tl.int32), 0)
            number += tl.sum((right & below).to(tl.int32), 0)
        # Chan, Golub & LeVeque (1983): sums of squares about the mean of a union of two sets.
        own_count = number.to(REAL)
        own_mean = total / own_count
        squares = _squares(d00, own_mean, m00)
        if POOL == 2:
            squares += _squares(d01, own_mean, m01)  # pyright: ignore[reportPossiblyUnboundVariable]
            squares += _squares(d10, own_mean, m10) + _squares(d11, own_mean, m11)  # pyright: ignore[reportPossiblyUnboundVariable]
        union = count + own_count
        difference = own_mean - mean
        square += tl.sum(squares, 0) + difference * difference * (count * own_count / union)
        mean += difference * (own_count / union)
        count = union
    plane = tl.num_programs(0).to(tl.int64) * channels
    partial += program * channels + column
    tl.store(partial, count, mask=column < channels)
    tl.store(partial + plane, mean, mask=column < channels)
    tl.store(partial + 2 * plane, square, mask=column < channels)


@triton.jit
def join_moments_kernel(
    partial,
    x,
    mean,
    variance,
    blocks,
    pixels,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REAL: tl.constexpr,
):
    """Mean and variance of each group from those of its blocks."""
    group = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    has = column < channels
    plane = tl.num_programs(0).to(tl.int64) * blocks * channels
    partial += group * blocks * channels + column
    count = tl.zeros([COLUMNS], REAL)
    total = tl.zeros([COLUMNS], REAL)
    for first in range(0, blocks, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < blocks)[:, None] & has[None, :]
        at = partial[None, :] + row[:, None] * channels
        number = tl.load(at, mask=mask, other=0)
        count += tl.sum(number, 0)
        total += tl.sum(number * tl.load(at + plane, mask=mask, other=0), 0)
    count = tl.where(has, count, tl.zeros_like(count) + 1)
    moved = total / count
    square = tl.zeros([COLUMNS], REAL)
    for first in range(0, blocks, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < blocks)[:, None] & has[None, :]
        at = partial[None, :] + row[:, None] * channels
        number = tl.load(at, mask=mask, other=0)
        between = _squares(tl.load(at + plane, mask=mask, other=0), moved, mask)
        within = tl.load(at + 2 * plane, mask=mask, other=0)
        square += tl.sum(within + number * between, 0)
    origin = read(x + group * pixels * channels + column, has, REAL)
    at = group * channels + column
    tl.store(mean + at, origin + moved, mask=has)
    tl.store(variance + at, square / count, mask=has)


def pool_moments(
    x: Tensor,
    sign: Tensor,
    groups: int,
    images: int,
    height: int,
    width: int,
    channels: int,
    pool: int,
    pooled: Tensor,
    mean: Tensor,
    variance: Tensor,
) -> None:
    """Mean and biased variance, and the value of each window that ``sign`` makes the largest."""
    tiling = Tiling(mean, -(-height // pool) * -(-width // pool) * images)
    partial = mean.new_empty(3, groups, tiling.blocks, channels)
    sizes = images, height, width, channels, tiling.blocks
    pool_moments_kernel[tiling.by_blocks](x, sign, pooled, partial, *sizes, pool, *tiling.constants)
    pixels = images * height * width
    join_moments_kernel[tiling.by_groups](
        partial, x, mean, variance, tiling.blocks, pixels, channels, *tiling.constants
    )
