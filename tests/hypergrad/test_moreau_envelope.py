"""MEHA against a plain loop of its algorithm, closed-form fixed points and known solutions."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from oracles import Quadratic, assert_same
from torch import Tensor

from fewshot_blo.bilevel import Bilevel
from fewshot_blo.errors import ConfigurationError, StructuralZeroError
from fewshot_blo.hypergrad import MoreauEnvelope, outer_step
from fewshot_blo.hypergrad.moreau_envelope import MoreauState
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.constraints import Box
from fewshot_blo.solving.driver import solve
from fewshot_blo.solving.falling import falling
from fewshot_blo.solving.problem import PlainProblem


def times(a: Tensor, x: Tensor) -> Tensor:
    """``A_t x_t``, ``[T, inner]``."""
    return torch.einsum("tij,tj->ti", a, x)


def test_the_iterates_are_those_of_the_algorithm() -> None:
    """The published order θ, x, y (θ, u, v here), by hand, from the y of one step at the start."""
    quadratic = Quadratic.random()
    alpha, beta, eta, gamma, c, p = 0.05, 0.1, 0.15, 0.7, 1.5, 0.4
    strategy = MoreauEnvelope(InnerSteps(1, SGD(beta)), eta, gamma, c, p)

    a, b, d, r = quadratic.a, quadratic.b, quadratic.d, quadratic.r
    x = quadratic.u.detach().clone()

    def f_y(y: Tensor) -> Tensor:
        return times(a, y) - (b @ x + quadratic.c)

    def d_y(weight: float) -> Tensor:
        return (y - d) / weight + f_y(y) - (y - theta) / gamma

    theta = y = torch.full((3, 5), 0.3, dtype=torch.float64)
    y = y - beta * d_y(c)
    state = MoreauState(inner=Quadratic.cut(torch.full((3, 5), 0.3, dtype=torch.float64)))
    for k in range(12):
        step, state = outer_step(strategy, quadratic.bilevel(), state)
        weight = c * (k + 1) ** p
        theta = theta - eta * (f_y(theta) + (theta - y) / gamma)
        # f_x is -B'y at y, and -B'θ at θ.
        d_x = r * x / weight - torch.einsum("tio,ti->o", b, y - theta) / 3
        assert_same(step.gradient, {"u": weight * d_x})
        assert_same(step.inner, Quadratic.cut(y))
        assert_same(state.proximal, Quadratic.cut(theta))
        torch.testing.assert_close(step.outer_loss, 0.5 * (y - d).square().sum(1) + r / 2 * x @ x)
        x = x - alpha * d_x
        with torch.no_grad():
            quadratic.u.sub_(alpha / weight * step.gradient["u"])
        y = y - beta * d_y(c * (k + 2) ** p)
    assert_same({"u": quadratic.u.detach()}, {"u": x})
    assert float(state.outer_step) == 12


def fixed_point(quadratic: Quadratic, weight: float, gamma: float) -> tuple[Tensor, Tensor]:
    """v and θ that stay where they are, ``[T, inner]`` each."""
    a, identity = quadratic.a, torch.eye(5, dtype=torch.float64)
    linear = quadratic.b @ quadratic.u.detach() + quadratic.c
    # (A + I/γ) θ = linear + v/γ, and (A + I/c - I/γ) v + θ/γ = linear + d/c.
    proximal = torch.linalg.inv(a + identity / gamma)
    matrix = a + identity / weight - identity / gamma + proximal / gamma**2
    right = linear + quadratic.d / weight - times(proximal, linear) / gamma
    v = torch.linalg.solve(matrix, right)
    return v, times(proximal, linear + v / gamma)


@pytest.mark.parametrize("weight", [2.0, 1e3])
def test_where_all_settles(weight: float) -> None:
    quadratic, gamma = Quadratic.random(), 0.8
    v, theta = fixed_point(quadratic, weight, gamma)
    state = MoreauState(inner=Quadratic.cut(v), proximal=Quadratic.cut(theta))
    strategy = MoreauEnvelope(InnerSteps(1, SGD(0.1)), 0.1, gamma, weight, 0.0)
    step, state = outer_step(strategy, quadratic.bilevel(), state)
    assert_same(state.inner, Quadratic.cut(v))
    assert_same(state.proximal, Quadratic.cut(theta))
    du = quadratic.r * quadratic.u - weight * torch.einsum("tio,ti->o", quadratic.b, v - theta) / 3
    assert_same(step.gradient, {"u": du.detach()}, 1e-9)


def test_steps_lead_there_and_the_error_falls_with_the_weight() -> None:
    quadratic = Quadratic.random()
    errors = []
    for weight in (1e2, 1e4):
        strategy = MoreauEnvelope(InnerSteps(1, SGD(0.3)), 0.3, 0.8, weight, 0.0)
        state = strategy.init()
        for _ in range(300):
            step, state = outer_step(strategy, quadratic.bilevel(), state)
        v, _ = fixed_point(quadratic, weight, 0.8)
        assert_same(state.inner, Quadratic.cut(v))
        errors.append(float((step.gradient["u"] - quadratic.exact()).norm()))
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)


def scalar(c: float, **settings: Any) -> PlainProblem:
    """G = c/2 (v - u)² and F = (v - 1)² + u²/10, solved by u = v = 1/1.1."""
    return PlainProblem(
        {"u": torch.zeros((), dtype=torch.float64)},
        {"v": torch.zeros((), dtype=torch.float64)},
        lambda v, u: c / 2 * (v["v"] - u["u"]).square(),
        lambda v, u: (v["v"] - 1).square() + u["u"].square() / 10,
        **settings,
    )


def error_after(steps: int, c: float, growth: float) -> float:
    strategy = MoreauEnvelope(InnerSteps(1, SGD(0.1)), 0.1, growth=growth, weight=4.0)
    optimizer = falling(partial(torch.optim.SGD, lr=0.1), growth)
    solution = solve(scalar(c), strategy, optimizer, steps=steps, progress=False)
    return abs(float(solution.outer["u"]) - 1 / 1.1)


@pytest.mark.slow
@pytest.mark.parametrize("c", [1.0, 3.0])
def test_it_converges_as_the_weight_grows(c: float) -> None:
    errors = [error_after(steps, c, 0.45) for steps in (1000, 4000)]
    assert errors[1] < 2e-3
    # As 1/c_k, which falls by 4^0.45 = 1.87.
    assert 1.6 < errors[0] / errors[1] < 2.2


@pytest.mark.slow
def test_a_nonconvex_inner_problem() -> None:
    """The paper's example ``F = (u - 2)² + (v - 4)²``, ``G = sin(u + v - 2)``.

    At a minimiser of G nearby ``u + v = 3π/2 + 2``, so that ``u = 3π/4`` and ``v = 3π/4 + 2``.
    """
    problem = PlainProblem(
        {"u": torch.zeros((), dtype=torch.float64)},
        {"v": torch.full((), 4.0, dtype=torch.float64)},
        lambda v, u: (u["u"] + v["v"] - 2).sin(),
        lambda v, u: (u["u"] - 2).square() + (v["v"] - 4).square(),
    )
    strategy = MoreauEnvelope(InnerSteps(1, SGD(0.1)), 0.1, gamma=0.5, weight=10.0, growth=0.45)
    optimizer = falling(partial(torch.optim.SGD, lr=0.01), 0.45)
    solution = solve(problem, strategy, optimizer, steps=6000, progress=False)
    assert float(solution.outer["u"]) == pytest.approx(0.75 * math.pi, abs=1e-2)
    assert float(solution.inner["v"]) == pytest.approx(0.75 * math.pi + 2, abs=1e-2)


def test_a_step_is_of_one_batch() -> None:
    seen: list[int] = []

    def inner_loss(v: Any, u: Any, batch: int) -> Tensor:
        seen.append(batch)
        loss: Tensor = 0.5 * (v["v"] - u["u"]).square()
        return loss

    one = scalar(1.0)
    problem = PlainProblem(
        one.outer, one.inner, inner_loss, one.outer_loss, inner_batches=lambda step, k: k
    )
    MoreauEnvelope().hypergradient(problem.at(0), MoreauState())
    # For v, θ and both sides of the gap.
    assert seen == [-1] * 4


def test_what_it_needs_must_be_named() -> None:
    slow = partial(torch.optim.SGD, lr=0.05)
    with pytest.raises(ConfigurationError, match="name an optimizer"):
        solve(scalar(1.0), MoreauEnvelope(), steps=5, progress=False)
    with pytest.raises(ConfigurationError, match="convergence is not measured: name steps"):
        solve(scalar(1.0), MoreauEnvelope(), slow, progress=False)
    with pytest.raises(ConfigurationError, match="start is cold, and MoreauEnvelope moves"):
        solve(scalar(1.0), MoreauEnvelope(), slow, steps=5, start="cold", progress=False)
    with pytest.raises(ConfigurationError, match=r"with which MoreauEnvelope's .* is wrong"):
        solve(
            scalar(1.0),
            MoreauEnvelope(),
            slow,
            steps=5,
            constraints={"v": Box(0, 1)},
            progress=False,
        )


def test_a_variable_of_the_start_has_no_hypergradient() -> None:
    u = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    problem = Bilevel(
        {"u": u},
        {"v": (u + 1)[None]},
        lambda v: v["v"].square().sum(1),
        lambda v: (v["v"] - 1).square().sum(1),
    )
    with pytest.raises(StructuralZeroError, match="MoreauEnvelope: outer variable 'u'"):
        MoreauEnvelope().hypergradient(problem, MoreauState())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"inner": InnerSteps(2, SGD())}, "MoreauEnvelope: inner.steps is 2: it takes one"),
        ({"proximal_step_size": -1.0}, "proximal_step_size is -1.0"),
        ({"gamma": 0.0}, "gamma is 0.0: it must be positive"),
        ({"weight": -2.0}, "weight is -2.0: it must be positive"),
        ({"growth": 0.5}, r"growth is 0.5: it must be in \[0, 0.5\)"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        MoreauEnvelope(**settings)


def test_what_it_says_of_itself() -> None:
    strategy = MoreauEnvelope()
    assert strategy.derivatives == "first"
    assert strategy.follows
    assert strategy.needs_warm_start
