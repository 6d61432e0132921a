"""What single-loop strategies share: counted outer steps, a dual in the state, sampled products.

The dual q of an inner problem solves ``G_vv q = F_v``; then ``du = F_u - G_uv q``. In place of a
linear solve at every outer step, q moves by ``q ← q - η (G_vv q - F_v)`` from where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, Block, OuterStep, Params, TaskParams, task_dot
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.gradients import both_gradients, inner_gradients, outer_gradients
from fewshot_blo.hypergrad.linear_solve import MatVec
from fewshot_blo.hypergrad.strategy import Own, State, Strategy, inner_start
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.kernel.adapt import at_draw
from fewshot_blo.kernel.rules import Scaled
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import NonNegative, Share


@dataclass(frozen=True, repr=False)
class CountedState(State):
    """The number of outer steps taken, with which step sizes fall.

    Attributes:
        outer_step: outer steps taken.
    """

    outer_step: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))


@dataclass(frozen=True, repr=False)
class DualState(CountedState):
    """The dual of every inner problem beside its parameters.

    Attributes:
        dual: q, ``[T, ...]``; empty for zero.
    """

    dual: TaskParams = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class DualStep(OuterStep):
    """A step with what the next one starts from.

    Attributes:
        next_inner: inner parameters, ``[T, ...]``; ``inner`` are those of the losses and gradient.
        next_dual: q, ``[T, ...]``.
    """

    next_inner: TaskParams
    next_dual: TaskParams


def check_one_step(method: str, inner: InnerSteps) -> None:
    """Raises ConfigurationError if there is another number of inner steps than one."""
    if inner.steps != 1:
        raise ConfigurationError(
            f"{method}: inner.steps is {inner.steps}: it takes one inner step per outer step; use "
            "AmIGO for several"
        )


@checked
@dataclass(frozen=True)
class SingleStep(Strategy[Own]):
    """A strategy that takes one step over v, and one over q, in an outer step.

    Attributes:
        inner: one step of an update rule over v; of SGD in the paper.
        dual_step_size: step size η of q.
        decay: exponent by which step sizes fall, in [0, 1].
    """

    inner: InnerSteps = InnerSteps(1, SGD())
    dual_step_size: NonNegative = 0.1
    decay: Share = 0.0

    def __post_init__(self) -> None:
        check_one_step(type(self).__name__, self.inner)

    @property
    def needs_warm_start(self) -> bool:
        """One step from anew is no solution of anything."""
        return True

    @property
    def follows(self) -> bool:
        """v and q take a few steps from where they were."""
        return True

    def moved(
        self, problem: Bilevel, state: DualState, v: TaskParams, g_v: TaskParams
    ) -> TaskParams:
        """v after one step along ``G_v``, of the length of this outer step."""
        rule = scaled_steps(self.inner, fallen(state, self.decay)).update_rule(plain=False)
        return rule.update(g_v, rule.init(v, problem.outer), v, 0)[0]

    def moved_dual(
        self, state: DualState, q: TaskParams, product: TaskParams, f_v: TaskParams
    ) -> TaskParams:
        """q after one step, likewise."""
        return dual_step(q, product, f_v, fallen(state, self.decay) * self.dual_step_size)


@dataclass(frozen=True)
class Directions:
    """All derivatives at v and q, from one batch of each loss; gradients over v are detached.

    Attributes:
        v: inner parameters, ``[T, ...]``.
        q: the dual, ``[T, ...]``.
        f, g: the losses, ``[T]``.
        f_v, f_u: gradients of F.
        g_v: gradient of G over v.
        product: ``G_vv q``.
        minus_cross: ``-mean_t G_uv q``.
    """

    v: TaskParams
    q: TaskParams
    f: Tensor
    g: Tensor
    f_v: TaskParams
    f_u: Mapping[str, Tensor | None]
    g_v: TaskParams
    product: TaskParams
    minus_cross: Mapping[str, Tensor | None]


def directions(problem: Bilevel, state: DualState) -> Directions:
    """The derivatives at v and q of the state: three passes."""
    v = {n: p.detach().requires_grad_() for n, p in inner_start(problem, state).items()}
    q = dual_start(problem, state)
    f = problem.outer_loss(v)
    f_v, f_u = both_gradients(f, v, problem.outer)
    g, g_v = inner_graph(problem, v)
    # One pass for both products; its mean over tasks is negated for du.
    product, cross = both_gradients(task_dot(g_v, q), v, problem.outer)
    minus = {name: None if x is None else -x for name, x in cross.items()}
    v, g_v = ({name: p.detach() for name, p in x.items()} for x in (v, g_v))
    return Directions(v, q, f.detach(), g, f_v, f_u, g_v, product, minus)


def fallen(state: CountedState, decay: float) -> Tensor:
    """``1/(t + 1)^decay`` after t outer steps."""
    return (state.outer_step + 1) ** -decay


def scaled_steps(inner: InnerSteps, factor: Tensor) -> InnerSteps:
    """Inner steps with step sizes times a factor; those of gradient descent where unset."""
    return replace(inner, rule=Scaled(inner.rule or SGD(), factor))


def dual_start(problem: Bilevel, state: DualState) -> TaskParams:
    """q of the state, or zero."""
    if state.dual:
        return state.dual
    return {name: torch.zeros_like(p).detach() for name, p in problem.inner_init.items()}


def dual_step(q: TaskParams, product: TaskParams, f_v: TaskParams, size: Tensor) -> TaskParams:
    """``q - size (G_vv q - F_v)``, ``[T, ...]``, from the product ``G_vv q``."""
    return {name: p - size * (product[name] - f_v[name]) for name, p in q.items()}


def inner_graph(
    problem: Bilevel, v: TaskParams, draw: int | None = None
) -> tuple[Tensor, TaskParams]:
    """G ``[T]`` at v on one sample of the data, and G_v with its graph."""
    with at_draw(draw):
        g = problem.inner_loss(v)
        return g.detach(), inner_gradients(g.sum(), v, create_graph=True)


def sampled_products(problem: Bilevel, v: TaskParams, g_v: TaskParams, first: int) -> MatVec:
    """Products with ``G_vv`` at v, each on a sample of its own where there are several.

    Args:
        problem: the inner problems.
        v: inner parameters, leaves, ``[T, ...]``.
        g_v: G_v with its graph, which serves for all products where G is of all data.
        first: number of the first sample: that of the inner steps, which were of those before.
    """
    draws, whole = count(first), problem.inner_block == Block()

    def product(q: TaskParams) -> TaskParams:
        own = g_v if whole else inner_graph(problem, v, next(draws))[1]
        return inner_gradients(task_dot(own, q).sum(), v)

    return product


def minus_cross(g_v: TaskParams, q: TaskParams, outer: Params) -> Mapping[str, Tensor | None]:
    """``-mean_t G_uv q``."""
    return outer_gradients(-task_dot(g_v, q).mean(), outer)
