"""The networks of the grid in plain ``jax.numpy``, with the weights' own names, images last."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from grid import Cell
from jax import Array, lax

Parameters = dict[str, Array]
Block = Callable[[Parameters, str, Array], Array]

EPS = 1e-5
SLOPE = 0.1


def features(cell: Cell, parameters: Parameters, images: Array) -> Array:
    """Features ``[B, D]`` of images ``[B, H, W, C]``.

    Args:
        cell: says which network, and the precision of float32 products.
        parameters: of the encoder, those of convolutions as ``[height, width, in, out]``.
        images: their dtype is that of the parameters.
    """
    resnet = cell.network.startswith("resnet12")
    block = _residual_block if resnet else _plain_block
    x = images.astype(_operands(cell, images))
    for number in range(1, 5):
        x = block(parameters, f"blocks.block{number}.", x)
    if resnet:
        return x.mean((1, 2))
    # PyTorch flattens channels first, and so the weights of the head are ordered.
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


def logits(cell: Cell, parameters: Parameters, x: Array) -> Array:
    """What the linear head makes of features, in the dtype of the parameters."""
    weight, bias = parameters["head.weight"], parameters["head.bias"]
    dtype = _operands(cell, weight)
    product = jnp.dot(x.astype(dtype), weight.astype(dtype).T)
    return product.astype(weight.dtype) + bias


def _operands(cell: Cell, example: Array) -> jnp.dtype:
    """The dtype of products and of what lies between them."""
    reduced = cell.precision == "bfloat16" and example.dtype == jnp.float32
    return jnp.dtype(jnp.bfloat16) if reduced else example.dtype


def _plain_block(parameters: Parameters, name: str, x: Array) -> Array:
    x = _convolution(x, parameters[f"{name}convolution.weight"])
    x = x + parameters[f"{name}convolution.bias"].astype(x.dtype)
    return _pool(jax.nn.relu(_norm(parameters, f"{name}norm.", x)))


def _residual_block(parameters: Parameters, name: str, x: Array) -> Array:
    shortcut = _convolution(x, parameters[f"{name}shortcut.convolution.weight"])
    shortcut = _norm(parameters, f"{name}shortcut.norm.", shortcut)
    for number in (1, 2, 3):
        x = _convolution(x, parameters[f"{name}residual.convolution{number}.weight"])
        x = _norm(parameters, f"{name}residual.norm{number}.", x)
        if number < 3:
            x = jax.nn.leaky_relu(x, SLOPE)
    return _pool(jax.nn.leaky_relu(x + shortcut, SLOPE))


def _convolution(x: Array, weight: Array) -> Array:
    """Stride 1; the output is as large as the input."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, weight.astype(x.dtype), (1, 1), "SAME", dimension_numbers=layout
    )


def _norm(parameters: Parameters, name: str, x: Array) -> Array:
    """Batch norm on the batch's own statistics, computed in the dtype of its parameters."""
    weight, bias = parameters[f"{name}weight"], parameters[f"{name}bias"]
    wide = x.astype(weight.dtype)
    centred = wide - wide.mean((0, 1, 2))
    variance = jnp.square(centred).mean((0, 1, 2))
    return (centred * (weight * lax.rsqrt(variance + EPS)) + bias).astype(x.dtype)


def _pool(x: Array) -> Array:
    """The maximum of windows of 2×2; an odd row or column is left out.

    A reduction of a reshaped array takes a third less memory, but its derivative divides by the
    number of places equal to the maximum. With it, Hessian products of Conv4-64 in float64 were not
    a number on the host; the cause was not traced.
    """
    window = (1, 2, 2, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
