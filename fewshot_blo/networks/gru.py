"""``GRU``, a recurrent encoder of token sequences and time series."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from fewshot_blo.networks.sequences import SequenceInput, Sequences, SequenceShape, Vocabulary
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Natural, Width


@checked
class GRU(nn.Module):
    """Gated recurrent layers; the features are the last layer's state after the last real entry.

    Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (arXiv
    1406.1078), in the form and with the initial weights of ``nn.GRU``. The cell is written out, so
    that it can be batched over tasks and has derivatives of any order: ``nn.GRU`` has neither.

    Args:
        shape: shape of one input: ``[L]`` of token ids, ``[L, C]`` of a time series. L may differ
            later.
        vocabulary: number of token ids; 0 for time series.
        width: number of units of each layer, and of features of a token.
        layers: number of layers.
        padding: token id of padding, which leaves the state as it is.

    Raises:
        ConfigurationError: if ``padding`` is not in the vocabulary.
    """

    def __init__(
        self,
        *,
        shape: SequenceShape = (1, 1),
        vocabulary: Vocabulary = 0,
        width: Width = 64,
        layers: Annotated[int, AtLeast(1), AtMost(1000)] = 1,
        padding: Natural = 0,
    ) -> None:
        super().__init__()
        self.width = width
        self.entries = SequenceInput(vocabulary, width, padding, nn.Identity())
        first = width if vocabulary else shape[-1]
        sizes = (first, *[width] * (layers - 1))
        self.layers = nn.ModuleList([GRULayer(size, width) for size in sizes])

    def forward(self, x: Sequences) -> Tensor:
        """Features ``[B, D]`` of token ids ``[B, L]`` or series ``[B, L, C]``.

        A dictionary may have them as "x", with a bool "mask" ``[B, L]`` of the real entries.
        """
        states, mask = self.entries(x)
        for layer in self.layers:
            states = layer(states, mask)
        last: Tensor = states[:, -1]
        return last


class GRULayer(nn.Module):
    """One layer: a state that each entry of a sequence changes.

    ``h' = (1 - z) n + z h`` with ``r = σ(W_r x + U_r h)``, ``z = σ(W_z x + U_z h)`` and
    ``n = tanh(W_n x + r U_n h)``; W and U are with biases, and stacked in this order.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.of_input, self.of_state = nn.Linear(inputs, 3 * width), nn.Linear(width, 3 * width)
        self.width = width
        for p in self.parameters():
            nn.init.uniform_(p, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """States ``[B, L, width]`` after each of ``[B, L, inputs]``; others keep the state."""
        state, states = x.new_zeros(len(x), self.width), []
        for entry, real in zip(self.of_input(x).unbind(1), mask.unbind(1), strict=True):
            reset_x, update_x, new_x = entry.chunk(3, -1)
            reset_h, update_h, new_h = self.of_state(state).chunk(3, -1)
            update = (update_x + update_h).sigmoid()
            new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
            state = torch.where(real.unsqueeze(-1), (1 - update) * new + update * state, state)
            states.append(state)
        return torch.stack(states, 1)
