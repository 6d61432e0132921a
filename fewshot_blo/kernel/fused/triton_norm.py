# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""The functions of ``norm_pool.c`` as Triton kernels, which read and write each value once.

Images are contiguous ``[groups, images, height, width, channels]``; vectors over channels are
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
def _pixels(tile, images, height, width, POOL: tl.constexpr, ROWS: tl.constexpr):
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
def _larger(a, b):
    """The larger of two, NaN where one is."""
    return tl.where((b > a) | (b != b), b, a)


@triton.jit
def _read(pointer, mask, REAL: tl.constexpr):
    return tl.load(pointer, mask=mask, other=0).to(REAL)


@triton.jit
def _write(pointer, value, mask):
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


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
    s = _read(sign + group * channels + column, column < channels, REAL)[None, :]
    # As if the group's first pixel were zero, lest large means take the digits of small variances.
    origin = _read(x + column, column < channels, REAL)[None, :]
    count = tl.zeros([COLUMNS], REAL)
    mean = tl.zeros([COLUMNS], REAL)
    square = tl.zeros([COLUMNS], REAL)
    for tile in range(tl.program_id(0) % blocks, tl.cdiv(windows, ROWS), blocks):
        pixel, to, there, right, below = _pixels(tile, images, height, width, POOL, ROWS)
        at = x + pixel[:, None] * channels + column[None, :]
        m00 = there[:, None] & has
        x00 = _read(at, m00, REAL)
        d00 = tl.where(m00, x00 - origin, tl.zeros_like(x00))
        total = tl.sum(d00, 0)
        number = tl.sum(there.to(tl.int32), 0)
        if POOL == 2:
            m01 = right[:, None] & has
            m10 = below[:, None] & has
            m11 = (right & below)[:, None] & has
            x01 = _read(at + channels, m01, REAL)
            x10 = _read(at + width * channels, m10, REAL)
            x11 = _read(at + (width + 1) * channels, m11, REAL)
            best = _larger(_larger(s * x00, s * x01), _larger(s * x10, s * x11))
            _write(pooled + to[:, None] * channels + column[None, :], s * best, m11)
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
            squares += _squares(d01, own_mean, m01)
            squares += _squares(d10, own_mean, m10) + _squares(d11, own_mean, m11)
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
    origin = _read(x + group * pixels * channels + column, has, REAL)
    at = group * channels + column
    tl.store(mean + at, origin + moved, mask=has)
    tl.store(variance + at, square / count, mask=has)


@triton.jit
def scatter_affine_kernel(
    g,
    a,
    b,
    x,
    pooled,
    out,
    images,
    height,
    width,
    channels,
    tiles,
    POOL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REAL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    group = program // tiles
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    has = (column < channels)[None, :]
    start = group * images * height * width * channels
    start_pooled = group * images * (height // POOL) * (width // POOL) * channels
    va = _read(a + group * channels + column, column < channels, REAL)[None, :]
    vb = _read(b + group * channels + column, column < channels, REAL)[None, :]
    tile = tl.program_id(0) % tiles
    pixel, to, there, right, below = _pixels(tile, images, height, width, POOL, ROWS)
    at = start + pixel[:, None] * channels + column[None, :]
    m00 = there[:, None] & has
    x00 = _read(x + at, m00, REAL)
    o00 = va + vb * x00
    if POOL == 2:
        m01 = right[:, None] & has
        m10 = below[:, None] & has
        m11 = (right & below)[:, None] & has
        x01 = _read(x + at + channels, m01, REAL)
        x10 = _read(x + at + width * channels, m10, REAL)
        x11 = _read(x + at + (width + 1) * channels, m11, REAL)
        pooled_at = start_pooled + to[:, None] * channels + column[None, :]
        p = _read(pooled + pooled_at, m11, REAL)
        value = _read(g + pooled_at, m11, REAL)
        zero = tl.zeros_like(value)
        # The first of equal ones; where a window is not complete, the value is zero.
        is00 = x00 == p
        is01 = (x01 == p) & ~is00
        is10 = (x10 == p) & ~(is00 | is01)
        o00 += tl.where(is00, value, zero)
        o01 = va + vb * x01 + tl.where(is01, value, zero)
        o10 = va + vb * x10 + tl.where(is10, value, zero)
        o11 = va + vb * x11 + tl.where(is00 | is01 | is10, zero, value)
        _write(out + at + channels, o01, m01)
        _write(out + at + width * channels, o10, m10)
        _write(out + at + (width + 1) * channels, o11, m11)
    _write(out + at, o00, m00)


@triton.jit
def gather_sums_kernel(
    u,
    b,
    x,
    pooled,
    over_g,
    over_x,
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
    start = group * images * height * width * channels
    start_pooled = group * images * (height // POOL) * (width // POOL) * channels
    vb = _read(b + group * channels + column, column < channels, REAL)[None, :]
    sums = tl.zeros([COLUMNS], REAL)
    products = tl.zeros([COLUMNS], REAL)
    for tile in range(tl.program_id(0) % blocks, tl.cdiv(windows, ROWS), blocks):
        pixel, to, there, right, below = _pixels(tile, images, height, width, POOL, ROWS)
        at = start + pixel[:, None] * channels + column[None, :]
        m00 = there[:, None] & has
        x00 = _read(x + at, m00, REAL)
        u00 = _read(u + at, m00, REAL)
        _write(over_x + at, vb * u00, m00)
        if POOL == 2:
            m01 = right[:, None] & has
            m10 = below[:, None] & has
            m11 = (right & below)[:, None] & has
            x01 = _read(x + at + channels, m01, REAL)
            u01 = _read(u + at + channels, m01, REAL)
            _write(over_x + at + channels, vb * u01, m01)
            x10 = _read(x + at + width * channels, m10, REAL)
            u10 = _read(u + at + width * channels, m10, REAL)
            _write(over_x + at + width * channels, vb * u10, m10)
            x11 = _read(x + at + (width + 1) * channels, m11, REAL)
            u11 = _read(u + at + (width + 1) * channels, m11, REAL)
            _write(over_x + at + (width + 1) * channels, vb * u11, m11)
            pooled_at = start_pooled + to[:, None] * channels + column[None, :]
            p = _read(pooled + pooled_at, m11, REAL)
            found = tl.where(x00 == p, u00, tl.where(x01 == p, u01, tl.where(x10 == p, u10, u11)))
            _write(over_g + pooled_at, found, m11)
            sums += tl.sum((u00 + u01) + (u10 + u11), 0)
            products += tl.sum((u00 * x00 + u01 * x01) + (u10 * x10 + u11 * x11), 0)
        else:
            sums += tl.sum(u00, 0)
            products += tl.sum(u00 * x00, 0)
    plane = tl.num_programs(0).to(tl.int64) * channels
    partial += program * channels + column
    tl.store(partial, sums, mask=column < channels)
    tl.store(partial + plane, products, mask=column < channels)


@triton.jit
def affine_relu_kernel(
    x,
    scale,
    shift,
    y,
    rows,
    channels,
    tiles,
    SLOPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REAL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    group = program // tiles
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & (column < channels)[None, :]
    at = (group * rows + row)[:, None] * channels + column[None, :]
    s = _read(scale + group * channels + column, column < channels, REAL)[None, :]
    t = _read(shift + group * channels + column, column < channels, REAL)[None, :]
    z = s * _read(x + at, mask, REAL) + t
    _write(y + at, tl.where(z <= 0, SLOPE * z, z), mask)


@triton.jit
def affine_relu_backward_kernel(
    g,
    x,
    y,
    scale,
    over_x,
    partial,
    rows,
    channels,
    blocks,
    SLOPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REAL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    group = program // blocks
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    s = _read(scale + group * channels + column, column < channels, REAL)[None, :]
    products = tl.zeros([COLUMNS], REAL)
    sums = tl.zeros([COLUMNS], REAL)
    for tile in range(tl.program_id(0) % blocks, tl.cdiv(rows, ROWS), blocks):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < channels)[None, :]
        at = (group * rows + row)[:, None] * channels + column[None, :]
        gradient = _read(g + at, mask, REAL)
        value = tl.where(_read(y + at, mask, REAL) <= 0, SLOPE * gradient, gradient)
        _write(over_x + at, value * s, mask)
        products += tl.sum(value * _read(x + at, mask, REAL), 0)
        sums += tl.sum(value, 0)
    plane = tl.num_programs(0).to(tl.int64) * channels
    partial += program * channels + column
    tl.store(partial, products, mask=column < channels)
    tl.store(partial + plane, sums, mask=column < channels)


@triton.jit
def affine_relu_double_kernel(
    u,
    u_scale,
    u_shift,
    g,
    x,
    y,
    scale,
    over_g,
    over_x,
    partial,
    rows,
    channels,
    blocks,
    SLOPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REAL: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    group = program // blocks
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    s = _read(scale + group * channels + column, column < channels, REAL)[None, :]
    us = _read(u_scale + group * channels + column, column < channels, REAL)[None, :]
    ut = _read(u_shift + group * channels + column, column < channels, REAL)[None, :]
    products = tl.zeros([COLUMNS], REAL)
    for tile in range(tl.program_id(0) % blocks, tl.cdiv(rows, ROWS), blocks):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < channels)[None, :]
        at = (group * rows + row)[:, None] * channels + column[None, :]
        inactive = _read(y + at, mask, REAL) <= 0
        direction = _read(u + at, mask, REAL)
        gradient = _read(g + at, mask, REAL)
        value = tl.where(inactive, SLOPE * gradient, gradient)
        of_g = direction * s + us * _read(x + at, mask, REAL) + ut
        _write(over_g + at, tl.where(inactive, SLOPE * of_g, of_g), mask)
        _write(over_x + at, value * us, mask)
        products += tl.sum(value * direction, 0)
    tl.store(partial + program * channels + column, products, mask=column < channels)


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
    """Mean and biased variance, and the value of each window that is largest after ``sign``."""
    tiling = _Tiling(mean, -(-height // pool) * -(-width // pool) * images)
    partial = mean.new_empty(3, groups, tiling.blocks, channels)
    sizes = images, height, width, channels, tiling.blocks
    pool_moments_kernel[tiling.by_blocks](x, sign, pooled, partial, *sizes, pool, *tiling.constants)
    pixels = images * height * width
    join_moments_kernel[tiling.by_groups](
        partial, x, mean, variance, tiling.blocks, pixels, channels, *tiling.constants
    )


def scatter_affine(
    g: Tensor,
    a: Tensor,
    b: Tensor,
    x: Tensor,
    pooled: Tensor,
    groups: int,
    images: int,
    height: int,
    width: int,
    channels: int,
    pool: int,
    out: Tensor,
) -> None:
    """``out = scatter(g) + a + b x``; without pooling there is no g."""
    tiling = _Tiling(b, -(-height // pool) * -(-width // pool) * images)
    sizes = images, height, width, channels, tiling.tiles
    scatter_affine_kernel[tiling.by_tiles](g, a, b, x, pooled, out, *sizes, pool, *tiling.constants)


def gather_sums(
    u: Tensor,
    b: Tensor,
    x: Tensor,
    pooled: Tensor,
    groups: int,
    images: int,
    height: int,
    width: int,
    channels: int,
    pool: int,
    over_g: Tensor,
    over_a: Tensor,
    over_b: Tensor,
    over_x: Tensor,
) -> None:
    """The gradients of ``<u, scatter_affine>`` over g (where pooled), a, b and x."""
    tiling = _Tiling(b, -(-height // pool) * -(-width // pool) * images)
    partial = b.new_empty(2, groups, tiling.blocks, channels)
    sizes = images, height, width, channels, tiling.blocks
    gather_sums_kernel[tiling.by_blocks](
        u, b, x, pooled, over_g, over_x, partial, *sizes, pool, *tiling.constants
    )
    _add_blocks(partial, over_a, over_b)


def affine_relu(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    slope: float,
    groups: int,
    rows: int,
    channels: int,
    y: Tensor,
) -> None:
    """``y``, the leaky ReLU of ``scale x + shift``."""
    tiling = _Tiling(scale, rows)
    affine_relu_kernel[tiling.by_tiles](
        x, scale, shift, y, rows, channels, tiling.tiles, slope, *tiling.constants
    )


def affine_relu_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    slope: float,
    groups: int,
    rows: int,
    channels: int,
    over_x: Tensor,
    over_scale: Tensor,
    over_shift: Tensor,
) -> None:
    """The gradients of ``affine_relu``; y tells where the ReLU is active."""
    tiling = _Tiling(scale, rows)
    partial = scale.new_empty(2, groups, tiling.blocks, channels)
    sizes = rows, channels, tiling.blocks
    affine_relu_backward_kernel[tiling.by_blocks](
        g, x, y, scale, over_x, partial, *sizes, slope, *tiling.constants
    )
    _add_blocks(partial, over_scale, over_shift)


def affine_relu_double(
    u: Tensor,
    u_scale: Tensor,
    u_shift: Tensor,
    g: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    slope: float,
    groups: int,
    rows: int,
    channels: int,
    over_g: Tensor,
    over_x: Tensor,
    over_scale: Tensor,
) -> None:
    """The gradients of those of ``affine_relu`` along u, over g, x and scale."""
    tiling = _Tiling(scale, rows)
    partial = scale.new_empty(1, groups, tiling.blocks, channels)
    inputs = u, u_scale, u_shift, g, x, y, scale
    sizes = rows, channels, tiling.blocks
    affine_relu_double_kernel[tiling.by_blocks](
        *inputs, over_g, over_x, partial, *sizes, slope, *tiling.constants
    )
    _add_blocks(partial, over_scale)


def _add_blocks(partial: Tensor, *sums: Tensor) -> None:
    for part, total in zip(partial, sums, strict=True):
        torch.sum(part, 1, out=total)


class _Tiling:
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
