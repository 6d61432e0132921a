"""Networks of named parts: an encoder before a linear head, or before a centre."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor, nn

from fewshot_blo.networks.centre import Centre

ENCODER, HEAD = "encoder", "head"


def classifier(encoder: nn.Module, features: int, way: int) -> nn.Sequential:
    """An encoder followed by a linear head, named ``encoder`` and ``head``.

    Args:
        encoder: from images to features ``[B, D]``.
        features: D.
        way: N, number of classes.
    """
    return nn.Sequential(OrderedDict([(ENCODER, encoder), (HEAD, nn.Linear(features, way))]))


def centred(encoder: nn.Module, features: int) -> nn.Sequential:
    """An encoder followed by a ``Centre``, named ``encoder`` and ``centre``.

    Args:
        encoder: from images to features ``[B, D]``.
        features: D.
    """
    example = next(encoder.parameters(), None)
    centre = Centre(features) if example is None else Centre(features).to(example)
    return nn.Sequential(OrderedDict([(ENCODER, encoder), ("centre", centre)]))


def part_prefix(part: str) -> str:
    """What the names of a part's tensors begin with."""
    return f"{part}."


def of_encoder(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Named tensors of a network or of its encoder, by their names in the encoder alone.

    A head's are left out.
    """
    head, encoder = part_prefix(HEAD), part_prefix(ENCODER)
    return {n.removeprefix(encoder): p for n, p in tensors if not n.startswith(head)}
