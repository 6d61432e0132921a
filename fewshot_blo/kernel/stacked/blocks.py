"""Fused blocks of convolution, batch norm, ReLU and pooling, for all tasks at once.

The blocks run on the stacked tensors themselves. Images are channels-last, ``[G*B, C, H, W]``, with
tasks laid out as the next convolution needs them: as groups of images (T groups, C channels), or,
on the CPU if each task has its own weights, side by side (one group, T*C channels).
``torch.func.vmap`` dispatches all blocks to one batching rule.
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
    """A block without its tensors: weight, bias or None, γ, β, running mean and variance.

    Attributes:
        geometry: geometry of the convolution.
        eps: ε of the batch norm.
        then: what follows the batch norm.
        running: normalise by running statistics instead of the batch's.
        first: number of leading images that count in batch statistics; None for all.
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
            tensors: the six tensors of each block, one block after another.
        """
        # For batched tensors ``_Batched.vmap`` calls ``run`` on the stacked ones.
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
            # A norm by batch statistics cancels the bias.
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
                beta = beta + 0 * bias.vectors(tasks, beside=beside)  # A zero gradient.
            images = norm_relu_pool(
                images,
                gamma,
                beta,
                block.eps,
                block.then,
                statistics=(mean, variance) if block.running else None,
                first=block.first,
                # Images have the dtype of products between blocks, that of norms at the end.
                dtype=gamma.dtype if number + 1 == len(self.blocks) else None,
            )
        if beside:
            return images.reshape(len(images), tasks, -1, *images.shape[2:]).transpose(0, 1)
        return images.reshape(tasks, -1, *images.shape[1:])


def _of_tasks(geometry: Geometry, tasks: int, *, beside: bool) -> Geometry:
    """One task's geometry, extended to all tasks with their own weights."""
    if beside:
        return replace(geometry.times(tasks), channels_last=True)
    return replace(geometry, tasks=tasks, channels_last=True)


@dataclass(frozen=True)
class _Stacked:
    """A tensor and the position of its task axis; None if all tasks share it."""

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
        """The tasks' output channels side by side, ``[T*O, ...]``; weights channels-last."""
        stacked = self._by_task(tasks)
        if stacked.ndim == 2:
            return stacked.flatten()
        # Rearranged here once instead of in every derivative.
        return stacked.permute(0, 1, 3, 4, 2).contiguous().flatten(0, 1).permute(0, 3, 1, 2)

    def biases(self, tasks: int, *, own: bool, dtype: torch.dtype) -> Tensor | None:
        """The bias of a convolution's output channels, ``[T*O]`` or ``[O]``."""
        if self.tensor is None:
            return None
        return (self.by_channel(tasks) if own else self.shared).to(dtype)

    def vectors(self, tasks: int, *, beside: bool) -> Tensor:
        """A vector for each group of images, ``[1, T*C]`` or ``[T, C]``."""
        stacked = self._by_task(tasks)
        return stacked.reshape(1, -1) if beside else stacked


class _Batched(Function):
    """The custom function whose batching rule vmap calls for ``Blocks``."""

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
