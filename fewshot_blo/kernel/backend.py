"""Choosing between the kernel's two backends by trying them on the user's own network."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.kernel.forward import Backend, TaskForward
from fewshot_blo.kernel.precision import Precision, product_precision
from fewshot_blo.kernel.timing import best_seconds

_CLEARLY = 0.8
"""The loop is chosen where it takes less than this part of the batched time: it falls behind with
more tasks than the few that are measured."""


def measure_backend(
    network: nn.Module,
    params: TaskParams,
    shared: Params,
    x: Tensor,
    precision: Precision = "float32",
    *,
    second_order: bool = True,
) -> Backend:
    """The backend for this device, by timing a forward pass and its second derivatives.

    Falls back to "loop" with a warning that says why where ``torch.func.vmap`` cannot batch the
    network.

    Args:
        network: the network, with its layers made for tasks.
        params: parameters of each task, ``[T, ...]``; may be empty.
        shared: parameters without a task axis.
        x: inputs, ``[T, B, ...]``, of the shape that will be used.
        precision: that will be used.
        second_order: without, by timing first derivatives alone, of parameters of tasks.
    """

    def run(forward: TaskForward) -> None:
        _derivatives(forward, params, shared, x, second_order=second_order)

    batched, loop = (TaskForward(network, b, precision) for b in ("batched", "loop"))
    try:
        batched_seconds = _seconds(batched, run, x)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        # Where the network fails task by task as well, that error is the one to see.
        run(loop)
        reason = str(error).strip().splitlines()[0]
        warnings.warn(
            f"{type(network).__name__} cannot be batched over tasks, so tasks run one after "
            f"another (loop backend): {reason}",
            stacklevel=2,
        )
        return "loop"
    loop_seconds = _seconds(loop, run, x)
    # In turns, for a machine may be busy with something else for a while.
    batched_seconds = min(batched_seconds, _seconds(batched, run, x))
    loop_seconds = min(loop_seconds, _seconds(loop, run, x))
    return "loop" if loop_seconds < _CLEARLY * batched_seconds else "batched"


def _seconds(forward: TaskForward, run: Callable[[TaskForward], None], x: Tensor) -> float:
    with product_precision(forward.precision, x.device):
        return best_seconds(lambda: run(forward), x.device)


def _derivatives(
    forward: TaskForward, params: TaskParams, shared: Params, x: Tensor, *, second_order: bool
) -> None:
    with torch.enable_grad():
        params = {name: p.detach().requires_grad_() for name, p in params.items()}
        shared = {name: p.detach().requires_grad_() for name, p in shared.items()}
        keys = torch.arange(x.shape[0], device=x.device)
        output = forward(params, shared, x, keys=keys).square().mean()
        leaves = [*params.values(), *shared.values()]
        adapted = list(params.values()) or leaves
        if not adapted:
            return
        twice = bool(params) and second_order
        gradients = torch.autograd.grad(output, adapted, create_graph=twice, materialize_grads=True)
        if twice:
            total = torch.stack([g.square().sum() for g in gradients]).sum()
            torch.autograd.grad(total, leaves, allow_unused=True)
