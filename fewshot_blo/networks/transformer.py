"""``TransformerEncoder``, a small pre-norm transformer for tokens, series and sets of vectors."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks.sequences import (
    SequenceInput,
    Sequences,
    SequenceShape,
    Vocabulary,
    mean_of_entries,
)
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Natural, Width


@checked
class TransformerEncoder(nn.Module):
    """Pre-norm blocks of attention and an MLP, a norm, and the mean over the real entries.

    Sources: Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), whose positions of
    sines and cosines are added at the first block; the norm before each part: Xiong et al., "On
    Layer Normalization in the Transformer Architecture" (arXiv 2002.04745).

    Attention is written out, so that it has derivatives of any order on every device.

    Args:
        shape: shape of one input: ``[L]`` of token ids, ``[L, C]`` of vectors. L may differ later.
        vocabulary: number of token ids; 0 for sequences of vectors.
        width: number of features D of an entry.
        depth: number of blocks.
        heads: number of heads of attention, which divides the width.
        hidden: number of units of the MLP of a block; 0 for four times the width.
        padding: token id of padding, which nothing attends to.
        positions: add the positions; without them the entries are a set.

    Raises:
        ConfigurationError: if the heads do not divide the width, the width is odd beside positions,
            or ``padding`` is not in the vocabulary.
    """

    def __init__(
        self,
        *,
        shape: SequenceShape = (1, 1),
        vocabulary: Vocabulary = 0,
        width: Width = 64,
        depth: Annotated[int, AtLeast(1), AtMost(1000)] = 2,
        heads: Width = 4,
        hidden: Annotated[int, AtLeast(0), AtMost(16384)] = 0,
        padding: Natural = 0,
        positions: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigurationError(
                f"width is {width}, which is not divisible by {heads} heads: use a multiple"
            )
        if width % 2 and positions:
            raise ConfigurationError(
                f"width is {width}: positions are pairs of a sine and a cosine, so it must be even"
            )
        self.width, self.positions = width, positions
        of_vectors = nn.Identity() if vocabulary else nn.Linear(shape[-1], width)
        self.entries = SequenceInput(vocabulary, width, padding, of_vectors)
        blocks = [TransformerBlock(width, heads, hidden or 4 * width) for _ in range(depth)]
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(width)

    def forward(self, x: Sequences) -> Tensor:
        """Features ``[B, D]`` of token ids ``[B, L]`` or vectors ``[B, L, C]``.

        A dictionary may have them as "x", with a bool "mask" ``[B, L]`` of the real entries.
        """
        vectors, mask = self.entries(x)
        if self.positions:
            vectors = vectors + sine_positions(vectors)
        for block in self.blocks:
            vectors = block(vectors, mask)
        return mean_of_entries(self.norm(vectors), mask)


class TransformerBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))`` with a GELU."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.linear1 = nn.LayerNorm(width), nn.Linear(width, hidden)
        self.gelu, self.linear2 = nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Vectors ``[B, L, D]`` of vectors, with a mask ``[B, L]`` of the real ones."""
        x = x + self.attention(self.norm1(x), mask)
        output: Tensor = x + self.linear2(self.gelu(self.linear1(self.norm2(x))))
        return output


class Attention(nn.Module):
    """Self-attention of several heads, from plain operations."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Vectors ``[B, L, D]`` of vectors; entries whose ``mask`` is False are not attended to."""
        batch, length, width = x.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        query, key, value = self.projections(x).reshape(shape).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / math.sqrt(shape[-1])
        # Finite: a row of padding alone has -inf everywhere, and NaN for its gradient.
        lowest = torch.finfo(scores.dtype).min
        weights = scores.masked_fill(~mask[:, None, None], lowest).softmax(-1)
        mixed: Tensor = self.output((weights @ value).transpose(1, 2).flatten(2))
        return mixed


def sine_positions(x: Tensor) -> Tensor:
    """``sin(l / 10000^(2i/D))`` and the cosines, interleaved: ``[L, D]`` for ``[B, L, D]``."""
    length, width = x.shape[1:]
    places = torch.arange(length, device=x.device, dtype=x.dtype).unsqueeze(1)
    powers = torch.arange(0, width, 2, device=x.device, dtype=x.dtype) / width
    angles = places * 10000**-powers
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
