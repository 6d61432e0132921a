# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Triton kernels for convolutions of channels-last images, which read windows in place.

Images are ``[T*B, H, W, C]`` in memory, weights ``[T*O, k, k, C]``: T tasks one after another. Sums
are float32, or float64 for float64 images; float32 factors are rounded to TF32 only if PyTorch's
own products may be.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewshot_blo.kernel.precision import uses_tf32
from fewshot_blo.kernel.stacked.geometry import Geometry

PROGRAMS = 1024
"""Programs among which a weight gradient with fewer tiles is divided."""


@triton.jit
def correlate_kernel(
    x,
    weight,
    y,
    images,
    height,
    width,
    out_height,
    out_width,
    outputs,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    blocks,
    CHANNELS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DIVISOR_H: tl.constexpr,
    DIVISOR_W: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    REAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``y[b, i, j, o] = Σ x[b, (i s - p + k d) / q, ...] w[o, k, ...]`` over whole positions."""
    task = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    image = row // (out_height * out_width)
    h = row // out_width % out_height * stride_h - padding_h
    w = row % out_width * stride_w - padding_w
    there = image < images
    x += (task * images + image) * height * width * CHANNELS
    weight += (task * outputs + column) * (HIGH * WIDE * CHANNELS)
    total = tl.zeros([ROWS, COLUMNS], REAL)
    # A step has a part of one tap's channels, or of all taps' where there are few channels.
    TAPS: tl.constexpr = HIGH * WIDE if CHANNELS >= DEPTH else 1
    PIECE: tl.constexpr = CHANNELS if CHANNELS >= DEPTH else HIGH * WIDE * CHANNELS
    PARTS: tl.constexpr = (PIECE + DEPTH - 1) // DEPTH
    for step in range(TAPS * PARTS):
        first = step % PARTS * DEPTH
        across = first + tl.arange(0, DEPTH)[None, :]
        down = first + tl.arange(0, DEPTH)[:, None]
        if TAPS == 1:
            tap = across // CHANNELS
            channel = across % CHANNELS
            entry = down
        else:
            tap = step // PARTS
            channel = across
            entry = tap * CHANNELS + down
        at_h = h + tap // WIDE * dilation_h
        at_w = w + tap % WIDE * dilation_w
        mask = there & (across < PIECE) & (at_h >= 0) & (at_w >= 0)
        if DIVISOR_H > 1:
            mask = mask & (at_h % DIVISOR_H == 0)
            at_h = at_h // DIVISOR_H
        if DIVISOR_W > 1:
            mask = mask & (at_w % DIVISOR_W == 0)
            at_w = at_w // DIVISOR_W
        mask = mask & (at_h < height) & (at_w < width)
        left = tl.load(x + (at_h * width + at_w) * CHANNELS + channel, mask=mask, other=0)
        right = tl.load(weight + entry, mask=(down < PIECE) & (column < outputs), other=0)
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=REAL)
    at = (task * images * out_height * out_width + row) * outputs + column
    tl.store(y + at, total.to(y.dtype.element_ty), mask=there & (column < outputs))


@triton.jit
def weight_gradient_kernel(
    g,
    x,
    partial,
    images,
    height,
    width,
    out_height,
    out_width,
    outputs,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    tasks,
    CHANNELS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    REAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A part of ``Σ g[b, i, j, o] x[b, i s - p + k d, ...]`` over images and positions."""
    ENTRIES: tl.constexpr = HIGH * WIDE * CHANNELS
    part = tl.program_id(0) // tasks
    parts = tl.num_programs(0) // tasks
    task = (tl.program_id(0) % tasks).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tap = column // CHANNELS
    from_h = tap // WIDE * dilation_h - padding_h
    from_w = tap % WIDE * dilation_w - padding_w
    channel = column % CHANNELS
    pixels = out_height * out_width
    g += task * images * pixels * outputs
    x += task * images * height * width * CHANNELS
    total = tl.zeros([ROWS, COLUMNS], REAL)
    for step in range(part, tl.cdiv(images * pixels, DEPTH), parts):
        across = step * DEPTH + tl.arange(0, DEPTH)[None, :]
        down = step * DEPTH + tl.arange(0, DEPTH)[:, None]
        at = across.to(tl.int64) * outputs + row
        mask = (across < images * pixels) & (row < outputs)
        left = tl.load(g + at, mask=mask, other=0)
        image = down // pixels
        at_h = down // out_width % out_height * stride_h + from_h
        at_w = down % out_width * stride_w + from_w
        mask = (image < images) & (column < ENTRIES)
        mask = mask & (at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width)
        start = image.to(tl.int64) * height * width * CHANNELS
        at = start + (at_h * width + at_w) * CHANNELS + channel
        right = tl.load(x + at, mask=mask, other=0)
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=REAL)
    at = (tl.program_id(0).to(tl.int64) * outputs + row) * ENTRIES + column
    tl.store(partial + at, total, mask=(row < outputs) & (column < ENTRIES))


def correlate(
    x: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    geometry: Geometry,
    divisor: tuple[int, int] = (1, 1),
) -> Tensor:
    """The convolution of x, ``[T*B, O, *size]``, channels-last.

    Args:
        x: ``[T*B, C, H, W]``, channels-last.
        weight: ``[T*O, C, k, k]``, channels-last.
        size: height and width of the output.
        geometry: geometry with one group of channels.
        divisor: spacing of the pixels of x, with zeros between them (transposed convolution).
    """
    count, channels, height, width = x.shape
    tasks = geometry.tasks
    images, outputs = count // tasks, len(weight) // tasks
    y = x.new_empty(count, *size, outputs)
    rows, columns, depth = _tile(x, outputs, weight[0].numel())
    blocks = triton.cdiv(images * size[0] * size[1], rows)
    grid = tasks * blocks, triton.cdiv(outputs, columns)
    sizes = images, height, width, *size, outputs
    where = *geometry.stride, *geometry.padding, *geometry.dilation
    shape = channels, *weight.shape[2:], *divisor
    with torch.cuda.device_of(x):
        correlate_kernel[grid](
            x, weight, y, *sizes, *where, blocks, *shape, rows, columns, depth, *_numbers(x)
        )
    return y.permute(0, 3, 1, 2)


def weight_gradient(g: Tensor, x: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of ``<g, x * w>``, ``[T*O, C, k, k]``, channels-last.

    Args:
        g: ``[T*B, O, H', W']``, channels-last.
        x: ``[T*B, C, H, W]``, channels-last.
        like: any weight, for its shape.
        geometry: geometry with one group of channels.
    """
    count, channels, height, width = x.shape
    tasks, (high, wide) = geometry.tasks, like.shape[2:]
    images, outputs, entries = count // tasks, len(like) // tasks, like[0].numel()
    rows, columns, depth = _tile(x, entries, g[0, 0].numel() * images)
    rows = min(rows, max(16, triton.next_power_of_2(outputs)))
    across = triton.cdiv(outputs, rows), triton.cdiv(entries, columns)
    steps = triton.cdiv(images * g[0, 0].numel(), depth)
    parts = max(1, min(steps, PROGRAMS // max(1, tasks * across[0] * across[1])))
    numbers = _numbers(x)
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    partial = x.new_empty(parts, len(like), high, wide, channels, dtype=real)
    sizes = images, height, width, *g.shape[2:], outputs
    where = *geometry.stride, *geometry.padding, *geometry.dilation
    shape = channels, high, wide
    with torch.cuda.device_of(x):
        weight_gradient_kernel[(parts * tasks, *across)](
            g, x, partial, *sizes, *where, tasks, *shape, rows, columns, depth, *numbers
        )
    return partial.sum(0).to(x.dtype).permute(0, 3, 1, 2)


def _tile(x: Tensor, columns: int, depth: int) -> tuple[int, int, int]:
    """Rows, columns and depth of a program's products."""
    rows = 64 if x.dtype == torch.float64 else 128
    deepest = 32 if x.dtype == torch.bfloat16 or uses_tf32(x.device) else 16
    return (
        rows,
        min(64, max(16, triton.next_power_of_2(columns))),
        min(deepest, max(16, triton.next_power_of_2(depth))),
    )


def _numbers(x: Tensor) -> tuple[tl.dtype, str]:
    """The dtype of sums, and the precision of float32 products."""
    real = tl.float64 if x.dtype == torch.float64 else tl.float32
    return real, "tf32" if x.dtype == torch.float32 and uses_tf32(x.device) else "ieee"
