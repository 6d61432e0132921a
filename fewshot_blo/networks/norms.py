"""Norm layers by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel import BatchNorm

Norm = Literal["batch", "group", "layer", "instance", "none"]


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """The norm layer of that name for 2-D feature maps.

    Raises:
        ConfigurationError: if the channels cannot be divided into groups.
    """
    if norm == "batch":
        return BatchNorm(channels)
    if norm == "group":
        if channels % 8:
            raise ConfigurationError(
                f"group norm divides channels into 8 groups; {channels} channels do not divide: "
                "use a multiple of 8"
            )
        return nn.GroupNorm(8, channels)
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()
