"""Any bilevel problem: two losses of two dictionaries of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, Block, InnerConstraints, Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.adapt import draw, inner_step
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural
from fewshot_blo.records.shapes import shapes
from fewshot_blo.solving.blocks import INNER, OUTER, shuffled
from fewshot_blo.solving.constraints import Constraint

Loss = (
    Callable[[Mapping[str, Tensor], Params], Tensor]
    | Callable[[Mapping[str, Tensor], Params, Any], Tensor]
)
"""``(v, u)`` or, where there are batches, ``(v, u, batch)`` to a scalar."""

Limit = Callable[[Mapping[str, Tensor], Params], Tensor]
"""``(v, u)`` to the entries of a constraint, ``[m]``."""

AFTER = -1
"""Number of the inner step in requests for a batch after the last inner step."""


@checked
@dataclass(frozen=True)
class PlainProblem:
    """``min over u of F(v*, u)`` subject to ``v* ≈ argmin over v of G(v, u)``.

    Attributes:
        outer: initial u by name; changed in place, so that they hold the solution in the end.
        inner: initial v by name; copied where it shares memory with an outer variable, which moves.
        inner_loss: G, a scalar.
        outer_loss: F, a scalar.
        inner_batches: the batch that G gets in inner step k of outer step s, a pure function of
            ``(s, k)``; k is -1 after the last one. Where a strategy takes further samples there, k
            goes on from the number of inner steps. Without, G gets none.
        outer_batches: the batch that F gets in outer step s, a pure function of s.
        inner_equalities, inner_inequalities: functions of ``(v, u)`` to vectors that must be zero,
            and not positive, in the inner problem.
        outer_equalities, outer_inequalities: likewise for the outer problem.
        inner_blocks: finite data in place of ``inner_batches``: G of all data is the mean of G over
            these batches. G gets one of them at a time, each once in as many outer steps as there
            are, in an order drawn anew for every k above. Strategies that keep a gradient of each
            batch (SABA) need to know which one they see.
        outer_blocks: the same for F, in place of ``outer_batches``.
        seed: of the order of blocks.
        inner_starts: where the inner problem starts in outer step s, a pure function of s, with
            the names and shapes of ``inner``. Without, at ``inner`` in every step.

    Raises:
        ConfigurationError: if there are no variables, one is not a floating-point tensor or an
            outer one no leaf, or a loss has both batches and blocks, or no block.
    """

    outer: Params
    inner: Params
    inner_loss: Loss
    outer_loss: Loss
    inner_batches: Callable[[int, int], Any] | None = None
    outer_batches: Callable[[int], Any] | None = None
    inner_starts: Callable[[int], Params] | None = None
    inner_equalities: Limit | None = None
    inner_inequalities: Limit | None = None
    outer_equalities: Limit | None = None
    outer_inequalities: Limit | None = None
    inner_blocks: Sequence[Any] | None = None
    outer_blocks: Sequence[Any] | None = None
    seed: Natural = 0

    def __post_init__(self) -> None:
        _check_blocks("inner", self.inner_batches, self.inner_blocks)
        _check_blocks("outer", self.outer_batches, self.outer_blocks)
        _check_tensors("outer", self.outer)
        _check_tensors("inner", self.inner)
        for name, leaf in self.outer.items():
            if not leaf.is_leaf:
                raise ConfigurationError(
                    f"outer variable '{name}' is computed from other tensors: pass tensor.detach()"
                )
            leaf.requires_grad_()
        object.__setattr__(self, "inner", _apart(self.inner, self.outer))
        self.at(0)  # Raises an error for what is missing.

    def __repr__(self) -> str:
        return f"PlainProblem(\n  outer: {shapes(self.outer)}\n  inner: {shapes(self.inner)})"

    def at(self, step: int, sets: Mapping[str, Constraint] | None = None) -> Bilevel:
        """The problem of outer step ``step``, as one task.

        Args:
            step: the outer step, from 0.
            sets: of inner variables, by name.

        Raises:
            ConfigurationError: at the first evaluation, if a loss is no scalar.
        """

        def inner_loss(v: TaskParams) -> Tensor:
            number = inner_step()
            number = draw() if number is None else number
            batch = self._inner_batch(step, AFTER if number is None else number)
            loss = cast(Callable[..., Tensor], self.inner_loss)
            return _scalar("inner_loss", loss(unstacked(v), self.outer, *batch))

        def outer_loss(v: TaskParams) -> Tensor:
            loss = cast(Callable[..., Tensor], self.outer_loss)
            return _scalar("outer_loss", loss(unstacked(v), self.outer, *self._outer_batch(step)))

        start = self.inner if self.inner_starts is None else self.inner_starts(step)
        stacked = {name: p.detach()[None] for name, p in start.items()}
        return Bilevel(
            self.outer,
            stacked,
            inner_loss,
            outer_loss,
            self._inner(sets or {}),
            _block(self.inner_batches, self.inner_blocks, step, INNER, self.seed, AFTER),
            _block(self.outer_batches, self.outer_blocks, step, OUTER, self.seed, 0),
        )

    def _inner(self, sets: Mapping[str, Constraint]) -> InnerConstraints | None:
        """The constraints of the inner problem, those of sets included."""
        functions = (self.inner_equalities, self.inner_inequalities)
        if not sets and functions == (None, None):
            return None

        def project(v: TaskParams) -> TaskParams:
            own = {name: s.at(self.outer) for name, s in sets.items()}
            return {n: own[n].project(p[0])[None] if n in own else p for n, p in v.items()}

        def equalities(v: TaskParams) -> Tensor:
            own = [s.at(self.outer).equalities(v[name][0]) for name, s in sets.items()]
            return _joined(self.inner_equalities, unstacked(v), self.outer, own)

        def inequalities(v: TaskParams) -> Tensor:
            own = [s.at(self.outer).inequalities(v[name][0]) for name, s in sets.items()]
            return _joined(self.inner_inequalities, unstacked(v), self.outer, own)

        return InnerConstraints(
            equalities,
            inequalities,
            project if functions == (None, None) else None,
            all(s.fixed for s in sets.values()),
        )

    def _inner_batch(self, step: int, number: int) -> list[Any]:
        """What G gets beside v and u: one batch, or nothing."""
        if self.inner_blocks is not None:
            index = shuffled(len(self.inner_blocks), step, INNER, self.seed, number)
            return [self.inner_blocks[index]]
        return [] if self.inner_batches is None else [self.inner_batches(step, number)]

    def _outer_batch(self, step: int) -> list[Any]:
        """What F gets beside v and u: one batch, or nothing."""
        if self.outer_blocks is not None:
            return [self.outer_blocks[shuffled(len(self.outer_blocks), step, OUTER, self.seed)]]
        return [] if self.outer_batches is None else [self.outer_batches(step)]

    @property
    def inner_sampled(self) -> bool:
        """Whether G is of another part of the data in every inner step."""
        return self.inner_batches is not None or len(self.inner_blocks or ()) > 1

    @property
    def sampled(self) -> bool:
        """Whether a loss is of another part of the data in every outer step."""
        blocks = (self.inner_blocks, self.outer_blocks)
        batches = (self.inner_batches, self.outer_batches)
        return any(part is not None for part in batches) or any(len(b or ()) > 1 for b in blocks)


def _check_tensors(level: str, variables: Mapping[str, Tensor]) -> None:
    for name, value in variables.items():
        if not value.is_floating_point():
            raise ConfigurationError(
                f"{level} variable '{name}' is of {value.dtype}: pass a floating-point tensor, "
                "such as tensor.float()"
            )


def _apart(inner: Params, outer: Params) -> Params:
    """The initial v, which stays where it is when outer variables are changed in place."""
    moving = {leaf.untyped_storage().data_ptr() for leaf in outer.values()}
    return {
        name: p.detach().clone() if p.untyped_storage().data_ptr() in moving else p
        for name, p in inner.items()
    }


def _joined(
    function: Limit | None, v: Mapping[str, Tensor], u: Params, own: list[Tensor]
) -> Tensor:
    """The values of a function and of sets, ``[1, m]``."""
    first = next(iter(v.values()))
    parts = [first.new_zeros(0), *own]
    if function is not None:
        parts.append(function(v, u).reshape(-1))
    return torch.cat(parts)[None]


def unstacked(v: TaskParams) -> dict[str, Tensor]:
    """The parameters of the one task, without its axis."""
    return {name: p[0] for name, p in v.items()}


def _scalar(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise ConfigurationError(
            f"{name} returns a {type(value).__name__}: it must return a scalar tensor, without "
            ".item() or float()"
        )
    if value.ndim:
        raise ConfigurationError(
            f"{name} has shape {list(value.shape)}: it must return a scalar; take its mean"
        )
    return value[None]


def _check_blocks(level: str, batches: object, blocks: Sequence[Any] | None) -> None:
    if batches is not None and blocks is not None:
        raise ConfigurationError(
            f"{level}_batches and {level}_blocks are both given: use one, the blocks where the "
            "data are finite and the batches otherwise"
        )
    if blocks is not None and not len(blocks):
        raise ConfigurationError(f"{level}_blocks is empty: give at least one batch")


def _block(
    batches: object, blocks: Sequence[Any] | None, step: int, level: int, seed: int, number: int
) -> Block | None:
    if blocks is not None:
        return Block(shuffled(len(blocks), step, level, seed, number), len(blocks))
    return Block() if batches is None else None
