"""Named variables as one point: copies, moves, projections, lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.solving.constraints import Constraint


def copies(variables: Params) -> dict[str, Tensor]:
    """Variables as they are now."""
    return {name: p.detach().clone() for name, p in variables.items()}


@torch.no_grad()
def move(variables: Params, to: Params) -> None:
    """Changes variables in place."""
    for name, leaf in variables.items():
        leaf.copy_(to[name])


def projected(variables: Params, sets: Mapping[str, Constraint]) -> dict[str, Tensor]:
    """The nearest variables within sets, by name; those without a set as they are."""
    return {n: sets[n].project(p) if n in sets else p for n, p in variables.items()}


def inner_product(a: Params, b: Params) -> float:
    """Summed over all entries, in float64."""
    pairs = ((x.detach().double(), b[name].detach().double()) for name, x in a.items())
    return sum(float((x * y).sum()) for x, y in pairs)


def norm(variables: Params) -> float:
    """Of all entries."""
    return math.sqrt(inner_product(variables, variables))


def distance(a: Params, b: Params) -> float:
    """Norm of the difference."""
    return norm({name: x.detach() - b[name].detach() for name, x in a.items()})
