"""Centring: subtracts the mean feature of the training images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.statistics import watched


class Centre(nn.Module):
    """Subtracts the mean feature of the training images, in ``eval()`` mode only.

    Source: Wang et al., "SimpleShot" (arXiv 1911.04623), the centring of its CL2N.

    Args:
        features: D, number of features.
    """

    mean: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, D]``, centred."""
        return x if self.training else x - self.mean


def has_centres(network: nn.Module) -> bool:
    """Whether a network has a ``Centre``, whose mean must be estimated."""
    return any(isinstance(module, Centre) for module in network.modules())


@torch.no_grad()
def estimate_centres(network: nn.Module, passes: Iterable[Callable[[], object]]) -> None:
    """Sets the mean of every ``Centre`` to that of its input features.

    Args:
        network: changed in place; in ``eval()`` mode.
        passes: each runs the network forward once, on a batch of images.

    Raises:
        ConfigurationError: if no pass goes through a ``Centre``.
    """
    centres = [module for module in network.modules() if isinstance(module, Centre)]
    sums = {centre: torch.zeros_like(centre.mean) for centre in centres}
    counts = dict.fromkeys(centres, 0)

    def record(centre: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(centre, Centre)
        sums[centre] += inputs[0].sum(0)
        counts[centre] += len(inputs[0])

    with watched(centres, record):
        for forward in passes:
            forward()
    if not all(counts.values()):
        raise ConfigurationError(
            "no image has gone through a Centre of the network, so its mean is unknown: remove it"
        )
    for centre, count in counts.items():
        centre.mean.copy_(sums[centre] / count)
