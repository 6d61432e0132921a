"""Intercepts a network's calls of batch norm and of PyTorch's random functions.

The user's layers are unchanged: calls are intercepted at PyTorch's functions, whatever class makes
them. A batch norm takes its statistics as the norm mode says and updates no running statistics;
random numbers are determined by the task's key.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.draws import DRAWS
from fewshot_blo.kernel.layers import (
    NO_ROWS,
    ForwardContext,
    TorchBatchNorm,
    batch_moments,
    forward_context,
    norm_statistics,
)

BatchNormFunction = Callable[..., Tensor]


class Interception(TorchFunctionMode):
    """Redirects calls of batch norm and of random functions.

    Args:
        context: context of the forward pass.
        batch_norm: replacement, with the arguments of ``F.batch_norm``.
    """

    def __init__(self, context: ForwardContext, batch_norm: BatchNormFunction) -> None:
        super().__init__()
        self._context, self._batch_norm = context, batch_norm
        self._differentiated = torch.is_grad_enabled()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._differentiated and not torch.is_grad_enabled() and _in_checkpoint():
            raise ConfigurationError(CHECKPOINTING)
        if func in COMPOSITE:
            with self:  # Its calls are intercepted too.
                return COMPOSITE[func](*args, **kwargs)
        with torch._C.DisableTorchFunction():
            if func is F.batch_norm:
                return self._batch_norm(*args, **kwargs)
            if func is torch.batch_norm:
                return self._batch_norm(*_reordered(*args, **kwargs))
            if self._context.key is not None and func in DRAWS:
                return DRAWS[func](self._context, *args, **kwargs)
            return func(*args, **kwargs)


CHECKPOINTING = (
    "the network uses activation checkpointing, or other hooks on saved tensors, in its forward: "
    "a recomputation in the backward pass would not use the task's parameters; turn it off "
    "(set_grad_checkpointing(False), gradient_checkpointing_disable()) and save memory with "
    "recompute, slices or a smaller chunk"
)


OWN_BATCH_NORM = (
    "the network calls F.batch_norm with batch statistics outside of PyTorch's batch norm layers, "
    "where norm mode 'support' cannot replace them by the support set's: "
    "use nn.BatchNorm2d (affine=False, track_running_stats=False for a norm without parameters), "
    "or norm mode 'transductive'"
)

NO_STATISTICS = (
    "the network has a batch norm without running statistics, which norm mode 'running' needs: set "
    "track_running_stats=True in that layer, or use another norm mode"
)


def _in_checkpoint() -> bool:
    """Whether ``torch.utils.checkpoint`` (use_reentrant=True) is on the call stack."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
    return False


def _reordered(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> tuple[Any, ...]:
    """The arguments of ``torch.batch_norm`` in the order of ``F.batch_norm``."""
    del cudnn_enabled
    return x, mean, variance, weight, bias, training, momentum, eps


def _without_overrides(function: Any) -> Callable[..., Any]:
    """A copy of a ``torch.nn.functional`` function without ``__torch_function__`` dispatch."""

    def no(*arguments: object) -> bool:
        return False

    checks = ("", "_unary", "_variadic")
    names = {**function.__globals__, **{f"has_torch_function{check}": no for check in checks}}
    copied = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


COMPOSITE = {
    function: _without_overrides(function)
    for function in (F.multi_head_attention_forward, F.gumbel_softmax)
}
"""Functions that call random functions, with copies in which these calls are intercepted."""


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` with statistics of the context's rows; running statistics stay unchanged."""
    del momentum
    statistics = norm_statistics(training)
    # Variances in bfloat16 would suffer from cancellation.
    x = x.float() if x.dtype == torch.bfloat16 else x
    if isinstance(statistics, int) and statistics == NO_ROWS:
        raise ConfigurationError(OWN_BATCH_NORM)
    if isinstance(statistics, str):
        if running_mean is None:
            raise ConfigurationError(NO_STATISTICS)
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.0, eps)
    if statistics is None:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    mean, variance = batch_moments(x, statistics)
    normal = (x - mean) * torch.rsqrt(variance + eps)
    shape = [1, -1] + [1] * (x.ndim - 2)
    normal = normal if weight is None else normal * weight.reshape(shape)
    return normal if bias is None else normal + bias.reshape(shape)


def following_norms(network: nn.Module) -> list[TorchBatchNorm]:
    """The batch norms whose statistics the norm mode chooses.

    They are those that ``network.train()`` sets to training mode: a network may keep others frozen.
    """
    norms = [module for module in network.modules() if isinstance(module, TorchBatchNorm)]
    if not norms or network.training:
        return [norm for norm in norms if norm.training]
    modes = {module: module.training for module in network.modules()}
    network.train()
    following = [norm for norm in norms if norm.training]
    for module, mode in modes.items():
        module.training = mode
    return following


@contextmanager
def kernel_forward(context: ForwardContext, norms: list[TorchBatchNorm]) -> Iterator[None]:
    """Inside, forward passes take statistics and random numbers as ``context`` says.

    Args:
        context: context of the forward passes.
        norms: as returned by ``following_norms``: they follow the context in ``eval()`` mode too,
            which turns off dropout alone.
    """
    resting = [norm for norm in norms if not norm.training]
    for norm in resting:
        norm.training = True
    try:
        with forward_context(context), Interception(context, batch_norm):
            yield
    finally:
        for norm in resting:
            norm.training = False
