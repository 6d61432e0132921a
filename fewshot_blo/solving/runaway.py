"""Whether F still falls beyond u along the way that u has gone, as where it has no minimum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, Params, TaskParams
from fewshot_blo.errors import DivergenceError
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.look_ahead import exact_step
from fewshot_blo.solving.points import copies, inner_product, move, norm, projected

_SHARES = (0.0, 0.03, 0.1, 1.0)
"""How far beyond u to look, relative to the way that u has gone."""

_FAR = 10.0
"""Length of a way, relative to one plus the distance of its start from zero, that is looked at."""

_FARTHEST = 3
"""Single entries of u that are looked at: those that have gone farthest."""


def falls_on(
    problem: Bilevel, inner: TaskParams, sets: Mapping[str, Constraint], origin: Params
) -> bool:
    """Whether F falls along all of the way beyond u, as long again as that from its start.

    Distances relative to ``|u|`` cannot tell where u runs away, for they become short by ``|u|``
    alone; nor can slopes, which are rounding beside F. But beyond a minimum F rises, and beyond the
    edge of a flat bottom its slope is zero. The way is that of all variables, of each one, and of
    each entry that went farthest, if u is far from the start along it. The variables are as before
    in the end.

    Args:
        problem: of one task, without constraints of the inner problem.
        inner: v, ``[1, ...]``.
        sets: of outer variables, by name.
        origin: where u started.
    """
    here = copies(problem.outer)
    try:
        far = (way for way in _ways(here, origin) if _is_far(way, origin))
        return any(_falls(problem, inner, sets, here, way) for way in far)
    finally:
        move(problem.outer, here)


def _is_far(way: Params, origin: Params) -> bool:
    start = {n: torch.where(way[n] != 0, p.to(way[n]), 0) for n, p in origin.items()}
    return norm(way) > _FAR * (1 + norm(start))


def _falls(
    problem: Bilevel,
    inner: TaskParams,
    sets: Mapping[str, Constraint],
    here: Params,
    way: Params,
) -> bool:
    for share in _SHARES:
        u = projected({name: p + share * way[name] for name, p in here.items()}, sets)
        move(problem.outer, u)
        try:
            step = exact_step(problem, inner)
        except DivergenceError:
            return False
        inner = step.inner
        moved = {name: p - here[name] for name, p in u.items()}
        if norm(moved) < 0.5 * share * norm(way):  # The sets end here.
            return False
        slope = inner_product(step.gradient, way if share == 0 else moved)
        # Far out a slope that falls exponentially is less than the smallest number.
        if slope > 0 or (slope == 0 and share < 1):
            return False
    return True


def _ways(here: Params, origin: Params) -> Iterator[dict[str, Tensor]]:
    """From the start to here: of all variables, and of parts of them alone."""
    whole = {name: p - origin[name].to(p) for name, p in here.items()}
    if not any(bool(p.any()) for p in whole.values()):
        return
    yield whole
    if len(whole) > 1:
        for name, p in whole.items():
            if bool(p.any()):
                yield {n: p if n == name else torch.zeros_like(x) for n, x in whole.items()}
    if sum(p.numel() for p in whole.values()) == len(whole):
        return
    sizes = torch.cat([p.abs().double().reshape(-1) for p in whole.values()])
    for index in sizes.topk(min(_FARTHEST, len(sizes))).indices.tolist():
        way = {name: torch.zeros_like(p) for name, p in whole.items()}
        for name, p in whole.items():
            if index < p.numel():
                way[name].view(-1)[index] = p.reshape(-1)[index]
                break
            index -= p.numel()
        yield way
