"""Running statistics of batch norms, estimated from training images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.interception import following_norms, kernel_forward
from fewshot_blo.kernel.layers import ForwardContext, TorchBatchNorm, batch_moments, norm_statistics


def uses_batch_statistics(network: nn.Module) -> bool:
    """Whether a row of the network's output depends on the other rows of its batch."""
    return bool(following_norms(network))


def has_statistics(network: nn.Module) -> bool:
    """Whether every batch norm has running statistics other than the initial mean 0, variance 1."""
    found = [_statistics(norm) for norm in following_norms(network)]
    return all(found) and not any(
        bool((mean == 0).all() and (variance == 1).all()) for mean, variance in found
    )


@contextmanager
def watched(
    modules: Iterable[nn.Module], look: Callable[[nn.Module, tuple[Tensor, ...]], None]
) -> Iterator[None]:
    """Inside, calls ``look`` with a module and its inputs before each forward of the modules."""
    hooks = [module.register_forward_pre_hook(look) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def estimate_statistics(network: nn.Module, passes: Iterable[Callable[[], object]]) -> None:
    """Sets the running statistics of every batch norm to the mean of its batch statistics.

    Args:
        network: changed in place.
        passes: each runs the network forward on images of the training classes, without
            ``torch.func.vmap``.

    Raises:
        ConfigurationError: if there is no pass, or no pass runs a batch norm.

    Source: Wu & Johnson, "Rethinking 'Batch' in BatchNorm" (arXiv 2105.07576), section 3.
    """
    norms = following_norms(network)
    sums: dict[nn.Module, list[Tensor]] = {
        norm: [torch.zeros_like(buffer) for buffer in _statistics(norm)] for norm in norms
    }
    met: dict[nn.Module, int] = dict.fromkeys(norms, 0)

    def record(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        rows = norm_statistics(norm.training)
        assert not isinstance(rows, str)
        for total, moment in zip(sums[norm], batch_moments(x, rows), strict=False):
            total += moment.flatten()
        met[norm] += 1

    count = 0
    for forward in passes:
        with watched(norms, record), kernel_forward(ForwardContext(), norms):
            forward()
        count += 1
    if count == 0:
        raise ConfigurationError("there are no passes to estimate statistics: give at least one")
    if not any(met.values()):
        raise ConfigurationError(
            "no image went through a batch norm in the passes: each pass must run the network when "
            "it is called, as a problem's query_outputs does"
        )
    for norm in norms:
        for buffer, total in zip(_statistics(norm), sums[norm], strict=True):
            buffer.copy_(total / max(met[norm], 1))


def _statistics(norm: TorchBatchNorm) -> tuple[Tensor, ...]:
    """Running mean and variance, or nothing if the norm has none."""
    buffers = norm.running_mean, norm.running_var
    return tuple(buffer for buffer in buffers if buffer is not None)
