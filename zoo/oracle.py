"""The oracle: the unconverted module in a plain PyTorch loop over tasks.

It shares no code with the project except ``TaskBatch``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewshot_blo.tasks import TaskBatch

STEPS, STEP_SIZE = 2, 0.005

Params = dict[str, Tensor]
Forward = Callable[[Params, Tensor], Tensor]
Result = tuple[Tensor, Params]


def pure_forward(module: nn.Module) -> tuple[Forward, Params]:
    """The module as a function of parameters and images, and its trainable parameters.

    Every call starts from copies of the module's present buffers. A tensor with several names is
    passed under each of them: after one call with a layer that has two names, ``functional_call``
    no longer recognises tied weights (torch 2.13).
    """
    buffers = {n: b.detach().clone() for n, b in module.named_buffers()}
    trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
    first = {tensor: n for n, tensor in (*trainable.items(), *module.named_buffers())}
    everything = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    names = {n: first[tensor] for n, tensor in everything if tensor in first}

    def forward(params: Params, images: Tensor) -> Tensor:
        given = {**params, **{n: b.clone() for n, b in buffers.items()}}
        tensors = {name: given[own] for name, own in names.items()}
        output: Tensor = functional_call(module, tensors, (images,), tie_weights=False)
        return output

    return forward, {n: p.detach().clone().requires_grad_() for n, p in trainable.items()}


def initialization(module: nn.Module, batch: TaskBatch, *, first_order: bool) -> Result:
    """MAML over all parameters: query losses ``[T]`` and the gradient of their mean."""
    forward, initial = pure_forward(module)
    losses = []
    for t in range(batch.tasks):
        params = dict(initial)
        for _ in range(STEPS):
            loss = F.cross_entropy(forward(params, batch.support_x[t]), batch.support_y[t])
            gradients = torch.autograd.grad(
                loss, list(params.values()), create_graph=not first_order, materialize_grads=True
            )
            steps = zip(params.items(), gradients, strict=True)
            params = {n: p - STEP_SIZE * g for (n, p), g in steps}
        losses.append(F.cross_entropy(forward(params, batch.query_x[t]), batch.query_y[t]))
    return _mean_gradient(losses, initial)


def shared_encoder(module: nn.Module, batch: TaskBatch) -> Result:
    """A linear head, adapted from zero, on the module's outputs divided by ``sqrt(D)``.

    Returns query losses ``[T]`` and the gradient of their mean with respect to the module.
    """
    forward, initial = pure_forward(module)
    losses = []
    for t in range(batch.tasks):
        support, query = (forward(initial, x[t]) for x in (batch.support_x, batch.query_x))
        support, query = (f / f.shape[1] ** 0.5 for f in (support, query))
        weight = support.new_zeros(batch.way, support.shape[1]).requires_grad_()
        bias = support.new_zeros(batch.way).requires_grad_()
        for _ in range(STEPS):
            loss = F.cross_entropy(support @ weight.T + bias, batch.support_y[t])
            step = torch.autograd.grad(loss, [weight, bias], create_graph=True)
            weight, bias = weight - STEP_SIZE * step[0], bias - STEP_SIZE * step[1]
        losses.append(F.cross_entropy(query @ weight.T + bias, batch.query_y[t]))
    return _mean_gradient(losses, initial)


def _mean_gradient(losses: list[Tensor], initial: Params) -> Result:
    total = torch.stack(losses)
    gradients = torch.autograd.grad(total.mean(), list(initial.values()), materialize_grads=True)
    return total.detach(), dict(zip(initial, gradients, strict=True))


def second_order(module: nn.Module, batch: TaskBatch) -> Result:
    """``initialization`` to second order, with unfused attention.

    PyTorch's fused attention kernels have no second derivatives.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return initialization(module, batch, first_order=False)


def unused_parameters(module: nn.Module, images: Tensor) -> frozenset[str]:
    """Names of the trainable parameters that the output does not depend on."""
    forward, params = pure_forward(module)
    total = forward(params, images).sum()
    gradients = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    return frozenset(n for n, g in zip(params, gradients, strict=True) if g is None)


def is_function(module: nn.Module, images: Tensor) -> bool:
    """Whether two calls with the same parameters, buffers and images give the same output."""
    forward, params = pure_forward(module)
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        outputs.append(forward(params, images).detach())
    return torch.equal(*outputs)


class _Dtypes(TorchDispatchMode):
    """Records the floating-point dtypes that operations return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and records its dtypes."""
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.found.add(x.dtype)
        return result


def computes_in_float32(module: nn.Module, images: Tensor) -> bool:
    """Whether a float64 module uses float32 operations internally."""
    forward, params = pure_forward(module)
    dtypes = _Dtypes()
    with dtypes, torch.no_grad():
        forward(params, images)
    return torch.float32 in dtypes.found
