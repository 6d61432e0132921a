"""An encoder for a few images at a time, whose activations are made again in the backward pass."""

from __future__ import annotations

from contextvars import copy_context

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewshot_blo.bilevel import Params
from fewshot_blo.kernel import Forward
from fewshot_blo.kernel.layers import fold


def cut(x: Tensor, images: int) -> tuple[Tensor, ...]:
    """Images ``[T, B, ...]`` in parts ``[T, b, ...]`` of so many images, one a task at least."""
    return torch.split(x, max(images // len(x), 1), 1)


def in_slices(forward: Forward, shared: Params, x: Tensor, images: int, keys: Tensor) -> Tensor:
    """Features ``[T, B, D]`` of images ``[T, B, ...]``, a slice at a time.

    The memory of a backward pass then does not grow with the number of images, for one more forward
    pass. Exact where images do not meet, that is without statistics of the batch.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174), cut
    between images and not between layers.

    Args:
        forward: of the encoder.
        shared: its parameters.
        x: images.
        images: at a time, of all tasks together.
        keys: dropout keys ``[T]``.
    """

    def features(shared: Params, part: Tensor, keys: Tensor) -> Tensor:
        return forward({}, shared, part, keys=keys)

    # With their context variables: on a GPU the backward pass runs in a thread of autograd.
    return torch.cat(
        [
            checkpoint(
                copy_context().run, features, shared, part, fold(keys, place), use_reentrant=False
            )
            for place, part in enumerate(cut(x, images))
        ],
        1,
    )
