"""Settings that are unset: chosen from measurements, and right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles import Quadratic
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, TaskLoss
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import (
    BOME,
    Implicit,
    Penalty,
    Strategy,
    Unroll,
    ValueFunction,
    outer_step,
)
from fewshot_blo.kernel import SGD, Adam, InnerSteps, adapt
from fewshot_blo.kernel.rules import AdGD


@pytest.mark.parametrize(
    ("strategy", "error"),
    [(Unroll(), 1e-5), (Implicit(), 1e-6), (Penalty(), 1e-5), (ValueFunction(), 1e-3)],
    ids=lambda x: type(x).__name__,
)
def test_hypergradients_without_a_setting(strategy: Strategy, error: float) -> None:
    quadratic = Quadratic.random()
    problem = quadratic.bilevel()
    settled = strategy.settled(problem)
    step, _ = outer_step(settled, problem, settled.init())
    exact = quadratic.exact()
    assert float((step.gradient["u"] - exact).norm() / exact.norm()) < error


def test_unrolling_from_a_solution_is_not_zero() -> None:
    quadratic = Quadratic.random()
    problem = quadratic.bilevel()
    solution = outer_step(Implicit(), problem, Implicit().init())[0].inner
    state = Unroll().init()
    step = Unroll().hypergradient(problem, type(state)(inner=solution))
    torch.testing.assert_close(step.gradient["u"], quadratic.exact(), rtol=1e-5, atol=1e-7)
    assert (step.figures["inner_steps"] > 0).all()


def test_weights_scale_with_the_problem() -> None:
    def settled(scale: float) -> float:
        a = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        problem = Bilevel(
            {"u": u},
            {"v": torch.zeros(1, 2, dtype=torch.float64)},
            lambda v: scale / 2 * ((v["v"] - u) * a).square().sum(1),
            lambda v: (v["v"] - 1).square().sum(1),
        )
        rho = Penalty().settled(problem).rho
        assert rho is not None
        return rho

    assert settled(10.0) == pytest.approx(settled(1.0) / 100)
    # 100 L_F / (L mu): the slope of F over its scale is larger than its curvature here.
    assert settled(1.0) == pytest.approx(100 * 2 * 2**0.5 / (4 * 1))


def test_explicit_settings_are_obeyed() -> None:
    problem = Quadratic.random().bilevel()
    assert Penalty(rho=3.0, lam=0.5).settled(problem) == Penalty(rho=3.0, lam=0.5)
    assert ValueFunction(lam=7.0).settled(problem) == ValueFunction(lam=7.0)
    inner = InnerSteps(3, SGD(0.2))
    assert Unroll(inner).for_training() == Unroll(inner)
    assert InnerSteps(3).filled(5, SGD()) == InnerSteps(3, SGD())
    assert InnerSteps(tolerance=1e-3).filled(5, SGD()).steps is None


def test_settings_of_training() -> None:
    assert Unroll().for_training() == Unroll(InnerSteps(5, SGD()))
    usual = Penalty().for_training()
    assert (usual.rho, usual.lam, usual.epsilon, usual.rho_growth) == (1e-2, 1e-2, 1e-2, 1.1)
    assert usual.inner == InnerSteps(20, Adam(1e-2))
    assert BOME().for_training().value_steps == 5


def test_a_weight_that_nobody_chose() -> None:
    with pytest.raises(ConfigurationError, match=r"Penalty: rho is unset: .*settled"):
        Penalty().init()
    with pytest.raises(ConfigurationError, match=r"ValueFunction: lam is unset"):
        ValueFunction().init()
    with pytest.raises(ConfigurationError, match=r"tolerance is 0\.0: it must be positive"):
        InnerSteps(tolerance=0.0)


def bowl(h: Tensor, centre: Tensor) -> TaskLoss:
    return lambda v: 0.5 * (h * (v["v"] - centre).square()).sum(1)


def test_adgd_is_its_formula() -> None:
    """One task, against the recursion of the paper in plain Python."""
    h, steps = torch.tensor([1.0, 30.0], dtype=torch.float64), 12
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = adapt(bowl(h, torch.zeros_like(x)), {"v": x[None]}, InnerSteps(steps, AdGD()))["v"][0]
    before, g_before, theta = x, h * x, float("inf")
    size = 1e-4 * (1 + float(x.norm())) / float((h * x).norm())
    x = x - size * h * x
    for _ in range(steps - 1):
        g = h * x
        curved = float((x - before).norm() / (2 * (g - g_before).norm()))
        new = min((1 + theta) ** 0.5 * size, curved)
        theta, size = new / size, new
        before, g_before, x = x, g, x - size * g
    torch.testing.assert_close(found, x, rtol=1e-10, atol=0)


def test_tasks_are_solved_to_the_tolerance_each_by_itself() -> None:
    curvatures = torch.tensor([[0.01, 0.02], [5.0, 500.0]], dtype=torch.float64)
    centre = torch.tensor([[3.0, -1.0], [0.1, 20.0]], dtype=torch.float64)

    def solve(tasks: slice) -> Tensor:
        loss = bowl(curvatures[tasks], centre[tasks])
        return adapt(loss, {"v": torch.zeros_like(centre[tasks])}, InnerSteps())["v"]

    both = solve(slice(None))
    torch.testing.assert_close(both, centre, atol=1e-5, rtol=0)
    torch.testing.assert_close(both[1:], solve(slice(1, 2)), rtol=1e-12, atol=0)
    torch.testing.assert_close(both[:1], solve(slice(0, 1)), rtol=1e-12, atol=0)


@pytest.mark.slow
def test_steps_fall_as_rho_grows() -> None:
    """With constant steps it diverges at outer step 336; the published schedules shorten them."""
    torch.manual_seed(0)
    u = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    h = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    problem = Bilevel(
        {"u": u},
        {"v": torch.zeros(1, 3, dtype=torch.float64)},
        lambda v: 0.5 * (h * (v["v"] - u).square()).sum(1),
        lambda v: (v["v"] - 1).square().sum(1),
    )
    strategy = Penalty(InnerSteps(20, SGD(0.1)), rho=1.0, epsilon=1e6, rho_growth=1.1)
    state = strategy.init()
    for _ in range(400):
        step, state = outer_step(strategy, problem, state)
    assert float(state.rho) > 1e15
    assert step.inner["v"].abs().max() < 10


def test_nothing_is_measured_for_no_steps() -> None:
    calls: list[int] = []
    problem, strategy = Quadratic.random().bilevel(), Unroll(InnerSteps(0))

    def counted(v: dict[str, Tensor]) -> Tensor:
        calls.append(1)
        return problem.inner_loss(v)

    strategy.hypergradient(replace(problem, inner_loss=counted), strategy.init())
    assert len(calls) <= 1  # For the loss that is reported.
