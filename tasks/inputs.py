"""Inputs of examples: one tensor, or tensors by name, of any floating-point or integer type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

import torch
from torch import Tensor

from fewshot_blo.records.shapes import kind
from fewshot_blo.tasks.errors import DataError

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
"""A tensor, or a mapping of tensors with the same leading dimensions, such as token ids and their
mask. A network gets it as it is: one argument."""


INPUTS = "inputs"
"""Name of inputs that are one tensor."""


def named(inputs: Inputs) -> Mapping[str, Tensor]:
    """The tensors of inputs by name; one tensor has the name "inputs"."""
    return inputs if isinstance(inputs, Mapping) else {INPUTS: inputs}


def in_words(inputs: Inputs, leading: int) -> str:
    """Shapes without the leading dimensions, dtypes and devices, by name if there are names."""
    if isinstance(inputs, Tensor):
        return f"{list(inputs.shape[leading:])} {kind(inputs)}"
    return ", ".join(f"{name} {in_words(x, leading)}" for name, x in inputs.items())


def check_input(name: str, tensor: Tensor) -> None:
    """Checks a tensor of examples ``[M, ...]``.

    Raises:
        DataError: if it is neither uint8 images, the only input, nor real numbers of another type.
    """
    if tensor.dtype == torch.uint8:
        if name != INPUTS or tensor.ndim != 4:
            raise DataError(
                f"{name} are uint8 of shape {list(tensor.shape)}: uint8 is for images alone, "
                "[images, channels, height, width]; give other numbers as int64 or floating-point"
            )
    elif tensor.is_complex() or tensor.ndim < 1:
        raise DataError(
            f"{name} are {tensor.dtype} of shape {list(tensor.shape)}: they must be real, and of "
            "shape [examples, ...]"
        )


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """The tensors of inputs."""
    return list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]


def one_of(inputs: Inputs) -> Tensor:
    """The first tensor of inputs, for leading dimensions and the device."""
    return tensors_of(inputs)[0]


def each(function: Callable[..., Tensor], *inputs: Inputs) -> Inputs:
    """Applies a function to the tensors of a name in turn; the result has the same names."""
    first = inputs[0]
    if isinstance(first, Mapping):
        rest = [cast(Mapping[str, Tensor], other) for other in inputs[1:]]
        return {name: function(x, *(other[name] for other in rest)) for name, x in first.items()}
    return function(*inputs)


def joined(*inputs: Inputs, dim: int = 0) -> Inputs:
    """Inputs in a row along a dimension."""
    return each(lambda *tensors: torch.cat(tensors, dim), *inputs)


def as_inputs(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Examples of a data set as inputs of a network, on a device.

    Images ``[M, C, H, W]``, uint8, become intensities in [0, 1] after the transfer; other
    floating-point tensors get the type, and integers, such as token ids, stay as they are.
    """
    if x.dtype == torch.uint8 and x.ndim == 4:
        return x.to(device).to(dtype).div_(255)
    return x.to(device, dtype if x.is_floating_point() else None)


def zeroed(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` ``[M, ...]`` with zeros, or False, in the rows of a mask ``[M]``; in place."""
    return x.masked_fill_(mask.reshape(-1, *[1] * (x.ndim - 1)), 0)
