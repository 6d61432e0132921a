"""Networks of named parts: an encoder followed by a linear head or by a ``Centre``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor, nn

from fewshot_blo.networks.centre import Centre
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting

ENCODER, HEAD = "encoder", "head"


@checked
def classifier(encoder: nn.Module, features: Counting, way: Counting) -> nn.Sequential:
    """An encoder followed by a linear head, named ``encoder`` and ``head``.

    Args:
        encoder: network from images to features ``[B, D]``.
        features: D, number of features.
        way: N, number of classes.
    """
    return nn.Sequential(OrderedDict([(ENCODER, encoder), (HEAD, nn.Linear(features, way))]))


def centred(encoder: nn.Module, features: int) -> nn.Sequential:
    """An encoder followed by a ``Centre``, named ``encoder`` and ``centre``.

    Args:
        encoder: network from images to features ``[B, D]``.
        features: D, number of features.
    """
    example = next(encoder.parameters(), None)
    centre = Centre(features) if example is None else Centre(features).to(example)
    return nn.Sequential(OrderedDict([(ENCODER, encoder), ("centre", centre)]))


def part_prefix(part: str) -> str:
    """Prefix of the names of a part's tensors."""
    return f"{part}."


def of_encoder(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of an encoder, by their names in it, from those of the encoder or of its network.

    Those of a head are dropped.
    """
    head, encoder = part_prefix(HEAD), part_prefix(ENCODER)
    return {n.removeprefix(encoder): p for n, p in tensors if not n.startswith(head)}
