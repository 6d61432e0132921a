"""Encoding a few images at a time, with activation checkpointing."""

from __future__ import annotations

from contextvars import copy_context

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel import Forward
from fewshot_blo.kernel.layers import fold
from fewshot_blo.kernel.statistics import uses_batch_statistics
from fewshot_blo.tasks.inputs import Inputs, each, one_of

NEEDS_ALL = "slices is {}, but the network {}, which needs all images: set slices to 0"


def check_slices(network: nn.Module, images: int) -> None:
    """Raises ``ConfigurationError`` if a network cannot encode this many images at a time."""
    if images and uses_batch_statistics(network):
        raise ConfigurationError(NEEDS_ALL.format(images, "uses batch statistics"))


def cut(x: Inputs, images: int) -> list[Inputs]:
    """Splits ``[T, B, ...]`` into parts of ``images`` images, at least one per task."""
    size = max(images // len(one_of(x)), 1)
    starts = range(0, one_of(x).shape[1], size)
    return [each(lambda p, start=start: p[:, start : start + size], x) for start in starts]


def in_slices(forward: Forward, shared: Params, x: Inputs, images: int, keys: Tensor) -> Tensor:
    """Features ``[T, B, D]`` of images ``[T, B, ...]``, a slice at a time.

    Activations are recomputed in the backward pass, so its memory does not grow with the number
    of images, at the cost of one more forward pass. Exact for networks without batch statistics.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174), with
    slices of the batch in place of segments of layers.

    Args:
        forward: forward pass of the encoder.
        shared: parameters of the encoder.
        x: images ``[T, B, ...]``.
        images: number of images at a time, over all tasks.
        keys: dropout keys ``[T]``.
    """

    def features(shared: Params, part: Inputs, keys: Tensor) -> Tensor:
        return forward({}, shared, part, keys=keys)

    # Copies the context variables: on a GPU, the backward pass runs in an autograd thread.
    return torch.cat(
        [
            checkpoint(
                copy_context().run, features, shared, part, fold(keys, place), use_reentrant=False
            )
            for place, part in enumerate(cut(x, images))
        ],
        1,
    )
