"""Blocks of a convolution, batch norm, ReLU and pooling, one after another, for all tasks at once.

The blocks run on the stacked tensors themselves. Images are channels-last, ``[G*B, C, H, W]``, and
tasks lie where the next convolution wants them: as groups of images (T groups, C channels), or on
the host, where each task has weights of its own, beside each other (one group, T*C channels).
``torch.func.vmap`` meets all blocks as one function, so that it has nothing to batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from fewshot_blo.kernel.function import Function
from fewshot_blo.kernel.stacked.convolution import convolve
from fewshot_blo.kernel.stacked.fused import Then, norm_relu_pool, operand_type
from fewshot_blo.kernel.stacked.geometry import Geometry, put_after, put_beside


@dataclass(frozen=True)
class Block:
    """A block, without its tensors: weight, bias or None, γ, β, running mean and variance.

    Attributes:
        geometry: of the convolution.
        eps: ε of the batch norm.
        then: what follows it.
        running: normalise by the running statistics and not by the batch's.
        first: of the batch's statistics: so many first images count; None for all.
    """

    geometry: Geometry
    eps: float
    then: Then
    running: bool = False
    first: int | None = None


TENSORS = 6

BESIDE = frozenset({"cpu"})
"""Devices on which grouped convolutions are faster than batched matrix products."""


@dataclass(frozen=True)
class Blocks:
    """Consecutive blocks."""

    blocks: tuple[Block, ...]

    def __call__(self, x: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
        """The last block's output; vmap adds a task axis.

        Args:
            x: images ``[B, C, H, W]``.
            tensors: of the blocks, one block after another.
        """
        # Where tensors are batched, vmap below calls ``run`` on the stacked ones.
        if any(t is not None and is_batchedtensor(t) for t in (x, *tensors)):
            output: Tensor = _Batched.apply(self, x, *tensors)
            return output
        return self.run(x.unsqueeze(0), [_Stacked(t, None) for t in tensors]).squeeze(0)

    def run(self, x: Tensor, tensors: Sequence[_Stacked]) -> Tensor:
        """The same for stacked images: from ``[T, B, C, H, W]`` to ``[T, B, C', H', W']``."""
        tasks, dtype = len(x), operand_type(x)
        images = x.flatten(0, 1)
        beside = False
        for number, block in enumerate(self.blocks):
            weight, bias, *vectors = tensors[TENSORS * number : TENSORS * (number + 1)]
            # A norm by the batch's own statistics takes the bias away again.
            added = bias if block.running else _Stacked(None, None)
            own = weight.is_stacked or added.is_stacked
            if beside != (own and x.device.type in BESIDE):
                images = put_after(images, tasks) if beside else put_beside(images, tasks)
                beside = not beside
            images = convolve(
                images.to(dtype),
                (weight.by_channel(tasks) if own else weight.shared).to(dtype),
                added.biases(tasks, own=own, dtype=dtype),
                _of_tasks(block.geometry, tasks if own else 1, beside=beside),
            )
            gamma, beta, mean, variance = (v.vectors(tasks, beside=beside) for v in vectors)
            if added is not bias and bias.tensor is not None:
                beta = beta + 0 * bias.vectors(tasks, beside=beside)  # So that it has a gradient.
            images = norm_relu_pool(
                images,
                gamma,
                beta,
                block.eps,
                block.then,
                statistics=(mean, variance) if block.running else None,
                first=block.first,
                # Between blocks images have the type of products, in the end that of norms.
                dtype=gamma.dtype if number + 1 == len(self.blocks) else None,
            )
        if beside:
            return images.reshape(len(images), tasks, -1, *images.shape[2:]).transpose(0, 1)
        return images.reshape(tasks, -1, *images.shape[1:])


def _of_tasks(geometry: Geometry, tasks: int, *, beside: bool) -> Geometry:
    """A task's geometry for all tasks that have weights of their own."""
    if beside:
        return replace(geometry.times(tasks), channels_last=True)
    return replace(geometry, tasks=tasks, channels_last=True)


@dataclass(frozen=True)
class _Stacked:
    """A tensor and where its task axis is; None where all tasks share it."""

    tensor: Tensor | None
    dim: int | None

    @property
    def is_stacked(self) -> bool:
        return self.dim is not None

    @property
    def shared(self) -> Tensor:
        assert self.tensor is not None
        assert self.dim is None
        return self.tensor

    def _by_task(self, tasks: int) -> Tensor:
        assert self.tensor is not None
        if self.dim is None:
            return self.tensor.expand(tasks, *self.tensor.shape)
        return self.tensor.movedim(self.dim, 0)

    def by_channel(self, tasks: int) -> Tensor:
        """With the tasks' output channels side by side, ``[T*O, ...]``; weights channels-last."""
        stacked = self._by_task(tasks)
        if stacked.ndim == 2:
            return stacked.flatten()
        # Once, and not in each of the derivatives.
        return stacked.permute(0, 1, 3, 4, 2).contiguous().flatten(0, 1).permute(0, 3, 1, 2)

    def biases(self, tasks: int, *, own: bool, dtype: torch.dtype) -> Tensor | None:
        """Those of a convolution's output channels, ``[T*O]`` or ``[O]``."""
        if self.tensor is None:
            return None
        return (self.by_channel(tasks) if own else self.shared).to(dtype)

    def vectors(self, tasks: int, *, beside: bool) -> Tensor:
        """For each group of images, ``[1, T*C]`` or ``[T, C]``."""
        stacked = self._by_task(tasks)
        return stacked.reshape(1, -1) if beside else stacked


class _Batched(Function):
    """What vmap calls in place of ``Blocks``."""

    @staticmethod
    def forward(blocks: Blocks, x: Tensor, *tensors: Tensor | None) -> Tensor:
        raise NotImplementedError("only vmap calls this")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        blocks: Blocks,
        x: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, int]:
        _, x_dim, *dims = in_dims
        images = x.expand(info.batch_size, *x.shape) if x_dim is None else x.movedim(x_dim, 0)
        stacked = [_Stacked(t, dim) for t, dim in zip(tensors, dims, strict=True)]
        return blocks.run(images, stacked), 0
