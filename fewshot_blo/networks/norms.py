"""Norm layers by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel import StepwiseBatchNorm

NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Layers that normalise."""

Norm = Literal["batch", "stepwise", "group", "layer", "instance", "none"]


def make_norm(norm: Norm, channels: int, steps: int = 0) -> nn.Module:
    """Creates the norm layer of that name for 2-D feature maps.

    Args:
        norm: "stepwise" is batch norm with its own scale and shift for each inner step.
        channels: C, number of channels of the maps.
        steps: number of inner steps of a stepwise norm.

    Raises:
        ConfigurationError: if C is not divisible by the 8 groups of group norm, or a stepwise norm
            has no steps.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "stepwise":
        return StepwiseBatchNorm(channels, steps)
    if norm == "group":
        if channels % 8:
            raise ConfigurationError(
                f"group norm has 8 groups, and {channels} channels are not divisible by 8: use a "
                "multiple of 8"
            )
        return nn.GroupNorm(8, channels)
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()
