"""Implicit differentiation by differences of gradients, against closed forms and DARTS' formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import Quadratic, assert_same, normal
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewshot_blo.bilevel import Bilevel, TaskParams
from fewshot_blo.errors import ConfigurationError, StructuralZeroError
from fewshot_blo.hypergrad import FiniteDifference, Implicit, State, outer_step
from fewshot_blo.hypergrad.implicit import ImplicitState
from fewshot_blo.hypergrad.linear_solve import MINRES, ConjugateGradient, OneStep
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.constraints import Box
from fewshot_blo.solving.driver import solve
from fewshot_blo.solving.problem import PlainProblem

AS_THEY_ARE = InnerSteps(0)


class Exponential:
    """``G_t = s_t Σ (exp(v) - v (u + b_t))`` and ``F_t = w_t |v - d_t|²/2``.

    Then ``v* = log(u + b_t)``, and the hypergradient is ``mean_t w_t (v* - d_t)/(u + b_t)``.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.b, self.d = normal(3, 4).abs().to(dtype), normal(3, 4, seed=1).to(dtype)
        self.s = torch.tensor([1.0, 3.0, 0.5], dtype=dtype)[:, None]
        # No gradient of F, and so no direction of q, in the second task.
        self.w = torch.tensor([1e-5, 0.0, 1e3], dtype=dtype)[:, None]
        self.u = torch.full((4,), 1.5, dtype=dtype).requires_grad_()

    @property
    def minimiser(self) -> Tensor:
        return (self.u + self.b).log().detach()

    def bilevel(self, start: Tensor | None = None) -> Bilevel:
        def inner_loss(v: TaskParams) -> Tensor:
            return (self.s * (v["v"].exp() - v["v"] * (self.u + self.b))).sum(1)

        def outer_loss(v: TaskParams) -> Tensor:
            return 0.5 * (self.w * (v["v"] - self.d).square()).sum(1)

        start = self.minimiser if start is None else start
        return Bilevel({"u": self.u}, {"v": start}, inner_loss, outer_loss)

    def exact(self) -> Tensor:
        slope = self.w * (self.minimiser - self.d) / (self.u.detach() + self.b)
        return slope.mean(0)

    def error(self, strategy: FiniteDifference) -> float:
        found = strategy.hypergradient(self.bilevel(), State()).gradient["u"]
        return float((found - self.exact()).norm() / self.exact().norm())


@pytest.mark.parametrize("solve", [None, MINRES(5), ConjugateGradient(5)])
def test_on_quadratics_it_is_exact_at_the_minimiser(solve: Any) -> None:
    """With a length at which rounding is small: differences of linear gradients are exact."""
    quadratic = Quadratic.random()
    strategy = FiniteDifference(AS_THEY_ARE, solve, length=0.5)
    step, state = outer_step(strategy, quadratic.bilevel(quadratic.minimiser()), State())
    assert_same(step.gradient, {"u": quadratic.exact()}, 1e-10 if solve else 1e-8)
    assert_same(state.inner, Quadratic.cut(quadratic.minimiser()))
    assert step.inner_loss.shape == (3,)


def test_with_nothing_named_it_is_the_exact_hypergradient() -> None:
    quadratic = Quadratic.random()
    step, _ = outer_step(FiniteDifference(), quadratic.bilevel(), State())
    assert_same(step.gradient, {"u": quadratic.exact()}, 1e-8)


def test_the_error_is_of_second_order_in_the_length() -> None:
    problem = Exponential()
    far, near = (problem.error(FiniteDifference(AS_THEY_ARE, length=x)) for x in (0.02, 0.01))
    assert far / near == pytest.approx(4, rel=0.05)
    assert near < 1e-4
    assert problem.error(FiniteDifference(AS_THEY_ARE)) < 1e-8


def test_each_task_has_its_own_length_and_one_without_a_direction_is_no_harm() -> None:
    """Gradients of F differ by 1e8 from task to task, and one is zero."""
    problem = Exponential()
    problem.w = problem.w * torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
    assert problem.error(FiniteDifference(AS_THEY_ARE)) < 1e-8  # Of the smallest alone.
    problem.w = torch.zeros_like(problem.w)
    step = FiniteDifference(AS_THEY_ARE).hypergradient(problem.bilevel(), State())
    assert_same({"u": step.gradient["u"] + 1}, {"u": torch.ones(4, dtype=torch.float64)})


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_float32(size: float) -> None:
    """At large v, too, where a fixed length would be rounded away."""
    quadratic = Quadratic.random()
    quadratic = Quadratic(
        quadratic.a.float(),
        quadratic.b.float(),
        size * quadratic.c.float(),
        size * quadratic.d.float(),
        quadratic.r,
        quadratic.u.detach().float().requires_grad_(),
    )
    start = quadratic.minimiser()
    step = FiniteDifference(AS_THEY_ARE).hypergradient(quadratic.bilevel(start), State())
    assert step.gradient["u"].dtype == torch.float32
    assert_same(step.gradient, {"u": quadratic.exact()}, 2e-3)
    assert Exponential(torch.float32).error(FiniteDifference(AS_THEY_ARE)) < 2e-3


@pytest.mark.parametrize("length", [0.01, None])
def test_one_step_is_the_derivative_through_it(length: float | None) -> None:
    """Equation 7 of DARTS, where G is quadratic."""
    quadratic = Quadratic.random()
    strategy = FiniteDifference(InnerSteps(1, SGD(0.2)), OneStep(0.2), length=length)
    step, state = outer_step(strategy, quadratic.bilevel(), State())
    v, exact = quadratic.descent(1, 0.2)
    assert_same(state.inner, Quadratic.cut(v))
    assert_same(step.gradient, {"u": exact}, 1e-9)


def test_one_step_is_the_formula_of_darts() -> None:
    """Equation 8 by hand, task by task, at the v that the step reaches."""
    problem, alpha = Exponential(), 0.1
    start = normal(3, 4, seed=2)
    strategy = FiniteDifference(InnerSteps(1, SGD(alpha)), OneStep(alpha), length=0.01)
    step = strategy.hypergradient(problem.bilevel(start), State())
    v = start - alpha * problem.s * (start.exp() - (problem.u + problem.b).detach())
    parts = []
    for t in range(3):
        f_v = problem.w[t] * (v[t] - problem.d[t])
        if float(f_v.norm()) == 0:
            continue
        epsilon = 0.01 / float(f_v.norm())
        # G_u is -s v.
        ahead, behind = (-problem.s[t] * (v[t] + sign * epsilon * f_v) for sign in (1, -1))
        parts.append(-alpha * (ahead - behind) / (2 * epsilon))
    assert_same(step.gradient, {"u": torch.stack(parts).sum(0) / 3})
    assert_same(step.inner, {"v": v})


class _Once(torch.autograd.Function):
    """``x²/2`` whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return 0.5 * x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return gradient * x


def test_no_second_derivative_is_taken() -> None:
    u = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
    problem = Bilevel(
        {"u": u},
        {"v": torch.zeros(1, 2, dtype=torch.float64)},
        lambda v: _Once.apply(v["v"] - u).sum(1),  # type: ignore[no-untyped-call]
        lambda v: 0.5 * (v["v"] - 1).square().sum(1),
    )
    step = FiniteDifference().hypergradient(problem, State())
    assert_same(step.gradient, {"u": u.detach() - 1}, 1e-8)
    with pytest.raises(StructuralZeroError, match="Implicit"):  # Its second derivative is lost.
        Implicit().hypergradient(problem, ImplicitState())


def scalar(c: float, dtype: torch.dtype) -> PlainProblem:
    """G = c/2 (v - u)² and F = (v - 1)² + u²/10, solved by u = 1/1.1."""
    return PlainProblem(
        {"u": torch.zeros((), dtype=dtype)},
        {"v": torch.zeros((), dtype=dtype)},
        lambda v, u: c / 2 * (v["v"] - u["u"]).square(),
        lambda v, u: (v["v"] - 1).square() + u["u"].square() / 10,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("c", [0.01, 0.1, 1.0, 10.0, 100.0])
def test_it_solves_with_nothing_named(c: float, dtype: torch.dtype) -> None:
    solution = solve(scalar(c, dtype), FiniteDifference(), progress=False)
    assert solution.converged
    assert abs(float(solution.outer["u"]) - 1 / 1.1) < 1e-3


def test_all_differences_are_of_one_batch() -> None:
    seen: list[int] = []

    def inner_loss(v: Any, u: Any, batch: int) -> Tensor:
        seen.append(batch)
        loss: Tensor = (batch + 2) / 2 * (v["v"] - u["u"]).square()
        return loss

    def number(step: int, k: int) -> int:
        return k

    one = scalar(1.0, torch.float64)
    problem = PlainProblem(
        one.outer, one.inner, inner_loss, one.outer_loss, inner_batches=number
    ).at(0)
    FiniteDifference(InnerSteps(2, SGD(0.1))).hypergradient(problem, State())
    assert seen[:2] == [0, 1]
    assert len(seen) > 4
    assert set(seen[2:]) == {-1}


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"length is 0.0: it must be positive"):
        FiniteDifference(length=0.0)
    problem = scalar(1.0, torch.float64)
    with pytest.raises(ConfigurationError, match=r"with which FiniteDifference's .* is wrong"):
        solve(problem, FiniteDifference(), constraints={"v": Box(0, 1)}, progress=False)
    u = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    start = Bilevel(
        {"u": u},
        {"v": (u + 1)[None]},
        lambda v: v["v"].square().sum(1),
        lambda v: (v["v"] - 1).square().sum(1),
    )
    with pytest.raises(StructuralZeroError, match="FiniteDifference: outer variable 'u'"):
        FiniteDifference().hypergradient(start, State())


def test_in_training_its_steps_and_products_are_few() -> None:
    usual = FiniteDifference().for_training()
    assert usual == FiniteDifference(InnerSteps(16, SGD()), ConjugateGradient())
    assert FiniteDifference().derivatives == "first"
