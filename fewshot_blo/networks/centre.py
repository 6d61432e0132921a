"""Features relative to those of the training images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fewshot_blo.kernel.statistics import watched


class Centre(nn.Module):
    """Subtracts the mean feature of the training images, outside of training.

    Source: Wang et al., "SimpleShot" (arXiv 1911.04623), the centring of its CL2N.

    Args:
        features: D.
    """

    mean: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, D]``, centred."""
        return x if self.training else x - self.mean


def has_centres(network: nn.Module) -> bool:
    """Whether there is a mean to be estimated."""
    return any(isinstance(module, Centre) for module in network.modules())


@torch.no_grad()
def estimate_centres(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets every ``Centre`` to the mean of what comes into it.

    Args:
        network: changed in place; in ``eval()`` mode.
        batches: images, ``[B, ...]`` each.
    """
    centres = [module for module in network.modules() if isinstance(module, Centre)]
    sums = {centre: torch.zeros_like(centre.mean) for centre in centres}
    count = 0

    def record(centre: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(centre, Centre)
        sums[centre] += inputs[0].sum(0)

    with watched(centres, record):
        for images in batches:
            network(images)
            count += len(images)
    for centre in centres:
        centre.mean.copy_(sums[centre] / count)
