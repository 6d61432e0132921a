"""Sequences as inputs of networks: token ids or vectors, and which entries are real."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.ranges import AtLeast, AtMost, Counting, NotEmpty

Vocabulary = Annotated[int, AtLeast(0), AtMost(10**6)]
SequenceShape = Annotated[tuple[Counting, ...], NotEmpty()]
Sequences = Tensor | Mapping[str, Tensor]
"""A batch of sequences: token ids ``[B, L]``, vectors ``[B, L, C]``, or a dictionary with one of
these as "x" and a bool "mask" ``[B, L]``, True for real entries."""


class SequenceInput(nn.Module):
    """The first layer of a network of sequences.

    Args:
        vocabulary: number of token ids; 0 for sequences of vectors.
        width: number of features of a token.
        padding: token id of padding.
        of_vectors: layer that vectors go through.
    """

    def __init__(self, vocabulary: int, width: int, padding: int, of_vectors: nn.Module) -> None:
        super().__init__()
        if vocabulary and padding >= vocabulary:
            raise ConfigurationError(
                f"padding is {padding}: it must be a token id, below the vocabulary of {vocabulary}"
            )
        self.vocabulary, self.padding = vocabulary, padding
        # Without padding_idx, whose gradient is wrong under vmap: padding is masked later.
        self.layer = nn.Embedding(vocabulary, width) if vocabulary else of_vectors

    def forward(self, x: Sequences) -> tuple[Tensor, Tensor]:
        """Vectors ``[B, L, width]`` and a mask ``[B, L]``, True for real entries.

        Raises:
            ConfigurationError: if the sequences have another shape or dtype, or a token id is not
                in the vocabulary.
        """
        entries, mask = (x, None) if isinstance(x, Tensor) else (x["x"], x.get("mask"))
        if self.vocabulary:
            if entries.ndim != 2 or entries.is_floating_point():
                raise ConfigurationError(
                    f"the sequences are {entries.dtype} of shape {list(entries.shape)}: a network "
                    "with a vocabulary takes token ids, int64 of shape [sequences, length]; for "
                    "vectors set vocabulary to 0"
                )
            entries = _InVocabulary.apply(entries, self.vocabulary)  # type: ignore[no-untyped-call]
            mask = entries != self.padding if mask is None else mask
        elif entries.ndim != 3 or not entries.is_floating_point():
            raise ConfigurationError(
                f"the sequences are {entries.dtype} of shape {list(entries.shape)}: a network "
                "without a vocabulary takes floating-point vectors of shape [sequences, length, "
                "channels]; for token ids set vocabulary to their number"
            )
        else:
            real = torch.ones(entries.shape[:2], dtype=torch.bool, device=entries.device)
            mask = real if mask is None else mask
        return self.layer(entries), mask


def mean_of_entries(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real entries, ``[B, D]``, of ``[B, L, D]``; zeros if there is none."""
    weights = mask.to(x.dtype).unsqueeze(-1)
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1)


class _InVocabulary(torch.autograd.Function):
    """The same token ids, after a check that vmap cannot skip.

    ``F.embedding`` under vmap joins the tasks' weights to one table, where an id that is too large
    would silently read the weights of another task.
    """

    @staticmethod
    def forward(ids: Tensor, vocabulary: int) -> Tensor:
        capturing = ids.is_cuda and torch.cuda.is_current_stream_capturing()
        if ids.numel() and not capturing:  # The passes before a capture have checked.
            low, high = (int(end) for end in torch.aminmax(ids))
            if low < 0 or high >= vocabulary:
                raise ConfigurationError(
                    f"there is a token id {low if low < 0 else high}: ids must be in [0, "
                    f"{vocabulary}), the vocabulary of the network; raise its setting vocabulary"
                )
        return ids.view_as(ids)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int | None]:
        ids, vocabulary = args
        return _InVocabulary.apply(ids, vocabulary), in_dims[0]  # type: ignore[no-untyped-call]
