# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Triton kernels for a per-channel affine map with a leaky ReLU, and its derivatives."""

import triton
import triton.language as tl
from torch import Tensor

from fewshot_blo.kernel.stacked.fused.triton_tiles import Tiling, add_blocks, read, write


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
    s = read(scale + group * channels + column, column < channels, REAL)[None, :]
    t = read(shift + group * channels + column, column < channels, REAL)[None, :]
    z = s * read(x + at, mask, REAL) + t
    write(y + at, tl.where(z <= 0, SLOPE * z, z), mask)


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
    s = read(scale + group * channels + column, column < channels, REAL)[None, :]
    products = tl.zeros([COLUMNS], REAL)
    sums = tl.zeros([COLUMNS], REAL)
    for tile in range(tl.program_id(0) % blocks, tl.cdiv(rows, ROWS), blocks):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < channels)[None, :]
        at = (group * rows + row)[:, None] * channels + column[None, :]
        gradient = read(g + at, mask, REAL)
        value = tl.where(read(y + at, mask, REAL) <= 0, SLOPE * gradient, gradient)
        write(over_x + at, value * s, mask)
        products += tl.sum(value * read(x + at, mask, REAL), 0)
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
    s = read(scale + group * channels + column, column < channels, REAL)[None, :]
    us = read(u_scale + group * channels + column, column < channels, REAL)[None, :]
    ut = read(u_shift + group * channels + column, column < channels, REAL)[None, :]
    products = tl.zeros([COLUMNS], REAL)
    for tile in range(tl.program_id(0) % blocks, tl.cdiv(rows, ROWS), blocks):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < channels)[None, :]
        at = (group * rows + row)[:, None] * channels + column[None, :]
        inactive = read(y + at, mask, REAL) <= 0
        direction = read(u + at, mask, REAL)
        gradient = read(g + at, mask, REAL)
        value = tl.where(inactive, SLOPE * gradient, gradient)
        of_g = direction * s + us * read(x + at, mask, REAL) + ut
        write(over_g + at, tl.where(inactive, SLOPE * of_g, of_g), mask)
        write(over_x + at, value * us, mask)
        products += tl.sum(value * direction, 0)
    tl.store(partial + program * channels + column, products, mask=column < channels)


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
    tiling = Tiling(scale, rows)
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
    """The vector-Jacobian products of ``affine_relu``; y tells where the ReLU is active."""
    tiling = Tiling(scale, rows)
    partial = scale.new_empty(2, groups, tiling.blocks, channels)
    sizes = rows, channels, tiling.blocks
    affine_relu_backward_kernel[tiling.by_blocks](
        g, x, y, scale, over_x, partial, *sizes, slope, *tiling.constants
    )
    add_blocks(partial, over_scale, over_shift)


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
    """Double backward of ``affine_relu`` along u: gradients with respect to g, x and scale."""
    tiling = Tiling(scale, rows)
    partial = scale.new_empty(1, groups, tiling.blocks, channels)
    inputs = u, u_scale, u_shift, g, x, y, scale
    sizes = rows, channels, tiling.blocks
    affine_relu_double_kernel[tiling.by_blocks](
        *inputs, over_g, over_x, partial, *sizes, slope, *tiling.constants
    )
    add_blocks(partial, over_scale)
