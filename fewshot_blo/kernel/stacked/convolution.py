"""2-D convolutions of T tasks at once, whose derivatives of any order run at the same speed.

A convolution defines a trilinear form ``<g, x * w>`` of output gradient, input and weight. Its
three partial derivatives are the convolution, the input gradient and the weight gradient; the
derivatives of each of them are the other two. PyTorch's own double backward of a convolution
instead swaps the batch with the channels, for which there are no fast kernels.

Under ``torch.func.vmap`` the task axis is merged with the channels: images ``[B, T*C, H, W]`` are
convolved in T groups, so that one call computes all tasks. With ``Geometry.tasks`` = T the tasks
are one after another instead: images are ``[T*B, C, H, W]``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewshot_blo.kernel.function import Function
from fewshot_blo.kernel.stacked.convolution_algorithms import Geometry
from fewshot_blo.kernel.stacked.convolution_choice import product


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution of ``[B, C, H, W]`` with ``[O, C / groups, k, k]``; vmap adds a task axis."""
    output: Tensor = _Convolution.apply(x, weight, bias, geometry)
    return output


class _Convolution(Function):
    """``x * w + b``, ``[B, O, H', W']``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return product("output", x, weight, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        x, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            _input_gradient(g, weight, x, ctx.geometry) if of_x else None,
            _weight_gradient(g, x, weight, ctx.geometry) if of_weight else None,
            _bias_gradient(g, ctx.geometry) if of_bias else None,
            None,
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
    ) -> tuple[Tensor, int]:
        tasks, (x_dim, weight_dim, bias_dim, _) = info.batch_size, in_dims
        biases = None if bias is None else _stack(bias, bias_dim, tasks)
        if weight_dim is None:
            images = _stack(x, x_dim, tasks)
            own = None if bias_dim is not None else bias
            output = convolve(images.flatten(0, 1), weight, own, geometry)
            output = output.reshape(tasks, -1, *output.shape[1:])
            if own is None and biases is not None:
                output = output + biases[:, None, :, None, None]
            return output, 0
        images = _stack(x, x_dim, tasks).transpose(0, 1)
        output = convolve(
            images.flatten(1, 2),
            weight.movedim(weight_dim, 0).flatten(0, 1),
            None if biases is None else biases.flatten(),
            geometry.times(tasks),
        )
        return output.reshape(len(output), tasks, -1, *output.shape[2:]), 1


def _stack(x: Tensor, dim: int | None, tasks: int) -> Tensor:
    """Moves the task axis to the front, or adds one."""
    return x.expand(tasks, *x.shape) if dim is None else x.movedim(dim, 0)


class _InputGradient(Function):
    """``d<g, x * w>/dx``, ``[B, C, H, W]``; linear in g and w."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.geometry = geometry
        return product("input", g, weight, like, geometry)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, weight = ctx.saved_tensors
        of_g, of_weight, *_ = ctx.needs_input_grad
        return (
            convolve(u, weight, None, ctx.geometry) if of_g else None,
            _weight_gradient(g, u, weight, ctx.geometry) if of_weight else None,
            None,
            None,
        )


class _WeightGradient(Function):
    """``d<g, x * w>/dw``, ``[O, C / groups, k, k]``; linear in g and x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.geometry = geometry
        return product("weight", g, x, like, geometry)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        of_g, of_x, *_ = ctx.needs_input_grad
        return (
            convolve(x, u, None, ctx.geometry) if of_g else None,
            _input_gradient(g, u, x, ctx.geometry) if of_x else None,
            None,
            None,
        )


def _bias_gradient(g: Tensor, geometry: Geometry) -> Tensor:
    """Sum of g over images and positions, ``[T*O]``."""
    return g.reshape(geometry.tasks, -1, *g.shape[1:]).sum((1, 3, 4)).flatten()


def _input_gradient(g: Tensor, weight: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    gradient: Tensor = _InputGradient.apply(g, weight, x.detach(), geometry)
    return gradient


def _weight_gradient(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    gradient: Tensor = _WeightGradient.apply(g, x, weight.detach(), geometry)
    return gradient
