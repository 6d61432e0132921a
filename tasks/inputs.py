"""Inputs of examples: one tensor, or tensors by name, of any floating-point or integer type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

import torch
from torch import Tensor

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
"""A tensor, or a mapping of tensors with the same leading dimensions, such as token ids and their
mask. A network gets it as it is: one argument."""


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


def to_floating(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Floating-point tensors in another type; token ids and masks stay as they are."""
    return each(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
