"""Whether a layer computes more than its class says."""

from __future__ import annotations

from torch import nn


def has_hooks(layer: nn.Module) -> bool:
    """Whether hooks are registered on the layer, or its ``forward`` has been replaced."""
    hooks = (
        layer._forward_pre_hooks,
        layer._forward_hooks,
        layer._backward_pre_hooks,
        layer._backward_hooks,
    )
    return any(hooks) or "forward" in vars(layer)
