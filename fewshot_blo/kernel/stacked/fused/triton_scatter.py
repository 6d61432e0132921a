# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Triton kernels for the derivatives of batch moments and max-pooling."""

import triton
import triton.language as tl
from torch import Tensor

from fewshot_blo.kernel.stacked.fused.triton_tiles import (
    Tiling,
    add_blocks,
    read,
    window_pixels,
    write,
)


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
    va = read(a + group * channels + column, column < channels, REAL)[None, :]
    vb = read(b + group * channels + column, column < channels, REAL)[None, :]
    tile = tl.program_id(0) % tiles
    pixel, to, there, right, below = window_pixels(tile, images, height, width, POOL, ROWS)
    at = start + pixel[:, None] * channels + column[None, :]
    m00 = there[:, None] & has
    x00 = read(x + at, m00, REAL)
    o00 = va + vb * x00
    if POOL == 2:
        m01 = right[:, None] & has
        m10 = below[:, None] & has
        m11 = (right & below)[:, None] & has
        x01 = read(x + at + channels, m01, REAL)
        x10 = read(x + at + width * channels, m10, REAL)
        x11 = read(x + at + (width + 1) * channels, m11, REAL)
        pooled_at = start_pooled + to[:, None] * channels + column[None, :]
        p = read(pooled + pooled_at, m11, REAL)
        value = read(g + pooled_at, m11, REAL)
        zero = tl.zeros_like(value)
        # The first of equal ones; where a window is not complete, the value is zero.
        is00 = x00 == p
        is01 = (x01 == p) & ~is00
        is10 = (x10 == p) & ~(is00 | is01)
        o00 += tl.where(is00, value, zero)
        o01 = va + vb * x01 + tl.where(is01, value, zero)
        o10 = va + vb * x10 + tl.where(is10, value, zero)
        o11 = va + vb * x11 + tl.where(is00 | is01 | is10, zero, value)
        write(out + at + channels, o01, m01)
        write(out + at + width * channels, o10, m10)
        write(out + at + (width + 1) * channels, o11, m11)
    write(out + at, o00, m00)


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
    vb = read(b + group * channels + column, column < channels, REAL)[None, :]
    sums = tl.zeros([COLUMNS], REAL)
    products = tl.zeros([COLUMNS], REAL)
    for tile in range(tl.program_id(0) % blocks, tl.cdiv(windows, ROWS), blocks):
        pixel, to, there, right, below = window_pixels(tile, images, height, width, POOL, ROWS)
        at = start + pixel[:, None] * channels + column[None, :]
        m00 = there[:, None] & has
        x00 = read(x + at, m00, REAL)
        u00 = read(u + at, m00, REAL)
        write(over_x + at, vb * u00, m00)
        if POOL == 2:
            m01 = right[:, None] & has
            m10 = below[:, None] & has
            m11 = (right & below)[:, None] & has
            x01 = read(x + at + channels, m01, REAL)
            u01 = read(u + at + channels, m01, REAL)
            write(over_x + at + channels, vb * u01, m01)
            x10 = read(x + at + width * channels, m10, REAL)
            u10 = read(u + at + width * channels, m10, REAL)
            write(over_x + at + width * channels, vb * u10, m10)
            x11 = read(x + at + (width + 1) * channels, m11, REAL)
            u11 = read(u + at + (width + 1) * channels, m11, REAL)
            write(over_x + at + (width + 1) * channels, vb * u11, m11)
            pooled_at = start_pooled + to[:, None] * channels + column[None, :]
            p = read(pooled + pooled_at, m11, REAL)
            found = tl.where(x00 == p, u00, tl.where(x01 == p, u01, tl.where(x10 == p, u10, u11)))
            write(over_g + pooled_at, found, m11)
            sums += tl.sum((u00 + u01) + (u10 + u11), 0)
            products += tl.sum((u00 * x00 + u01 * x01) + (u10 * x10 + u11 * x11), 0)
        else:
            sums += tl.sum(u00, 0)
            products += tl.sum(u00 * x00, 0)
    plane = tl.num_programs(0).to(tl.int64) * channels
    partial += program * channels + column
    tl.store(partial, sums, mask=column < channels)
    tl.store(partial + plane, products, mask=column < channels)


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
    """``out = scatter(g) + a + b x``; g is not used without pooling."""
    tiling = Tiling(b, -(-height // pool) * -(-width // pool) * images)
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
    """Gradients of ``<u, scatter_affine>`` with respect to g (if pooled), a, b and x."""
    tiling = Tiling(b, -(-height // pool) * -(-width // pool) * images)
    partial = b.new_empty(2, groups, tiling.blocks, channels)
    sizes = images, height, width, channels, tiling.blocks
    gather_sums_kernel[tiling.by_blocks](
        u, b, x, pooled, over_g, over_x, partial, *sizes, pool, *tiling.constants
    )
    add_blocks(partial, over_a, over_b)
