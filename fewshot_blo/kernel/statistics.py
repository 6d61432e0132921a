"""What batch norms know of the images that a network was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.layers import (
    BatchNorm,
    ForwardContext,
    batch_moments,
    forward_context,
)


def uses_batch_statistics(network: nn.Module) -> bool:
    """Whether a row of the network's output depends on the other rows of its batch."""
    return any(isinstance(module, BatchNorm) for module in network.modules())


def has_statistics(network: nn.Module) -> bool:
    """Whether every batch norm's running statistics are other than those it is made with."""
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    return not any(
        bool((norm.running_mean == 0).all() and (norm.running_var == 1).all()) for norm in norms
    )


@contextmanager
def watched(
    modules: Iterable[nn.Module], look: Callable[[nn.Module, tuple[Tensor, ...]], None]
) -> Iterator[None]:
    """Calls ``look`` with each module and its inputs before each of its forward passes inside."""
    hooks = [module.register_forward_pre_hook(look) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def estimate_statistics(network: nn.Module, passes: Iterable[Callable[[], object]]) -> None:
    """Sets the running statistics of every batch norm to the mean over passes of its statistics.

    Args:
        network: changed in place.
        passes: each runs the network forward once, on a batch of images of the classes that it was
            trained on, without ``torch.func.vmap``.

    Raises:
        ConfigurationError: if there is no pass.

    Source: Wu & Johnson, "Rethinking 'Batch' in BatchNorm" (arXiv 2105.07576), section 3.
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    sums = {norm: [torch.zeros_like(norm.running_mean) for _ in range(2)] for norm in norms}

    def record(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        assert isinstance(norm, BatchNorm)
        rows = norm.statistics()
        assert not isinstance(rows, str)
        for total, moment in zip(sums[norm], batch_moments(x, rows), strict=True):
            total += moment.flatten()

    count = 0
    for forward in passes:
        with watched(norms, record), forward_context(ForwardContext()):
            forward()
        count += 1
    if count == 0:
        raise ConfigurationError("there are no passes to take statistics from: give at least one")
    for norm in norms:
        norm.running_mean.copy_(sums[norm][0] / count)
        norm.running_var.copy_(sums[norm][1] / count)
