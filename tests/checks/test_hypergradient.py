"""How far hypergradients are from that of the solved inner problem."""

from __future__ import annotations

import pytest
import torch
from oracles import make_batch
from torch import nn

from fewshot_blo import (
    SGD,
    Bilevel,
    ConjugateGradient,
    Implicit,
    Initialization,
    LinearHead,
    MatchingHead,
    Penalty,
    RidgeHead,
    SharedEncoder,
    Unroll,
    ValueFunction,
    classifier,
)
from fewshot_blo.bilevel import TaskParams
from fewshot_blo.checks.hypergradient import measure_hypergradient
from fewshot_blo.checks.inner import inner_losses, solve_inner
from fewshot_blo.errors import ConfigurationError, StructuralZeroError
from fewshot_blo.kernel import InnerSteps


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 49, 8)
    ).double()


def problem() -> SharedEncoder:
    return SharedEncoder(encoder(), LinearHead(), prox=0.5, backend="loop")


def test_newton_solves_quadratics() -> None:
    torch.manual_seed(0)
    root = torch.randn(3, 5, 5, dtype=torch.float64)
    a, b = root @ root.mT + torch.eye(5), torch.randn(3, 5, dtype=torch.float64)
    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def inner_loss(v: TaskParams) -> torch.Tensor:
        x = v["x"]
        return 0.5 * torch.einsum("ti,tij,tj->t", x, a, x) - (b * x).sum(1) + 0 * u.sum()

    quadratic = Bilevel({"u": u}, {"x": torch.zeros_like(b)}, inner_loss, inner_loss)
    torch.testing.assert_close(solve_inner(quadratic)["x"], torch.linalg.solve(a, b))


def test_newton_halves_its_steps() -> None:
    """From 3 a whole step for ``sqrt(1 + x²)`` goes to -27, and the next ones to infinity."""
    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def inner_loss(v: TaskParams) -> torch.Tensor:
        return (1 + v["x"].square()).sqrt().sum(1) + 0 * u.sum()

    start = torch.tensor([[3.0], [0.1]], dtype=torch.float64)
    found = solve_inner(Bilevel({"u": u}, {"x": start}, inner_loss, inner_loss))["x"]
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-7, rtol=0)


def test_newton_refuses_a_step_that_does_not_lower_the_loss() -> None:
    """From 1 whole steps for ``sqrt(1 + x²)`` go to -1 and back; half a step goes to 0."""
    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def inner_loss(v: TaskParams) -> torch.Tensor:
        return (1 + v["x"].square()).sqrt().sum(1) + 0 * u.sum()

    start = torch.tensor([[1.0]], dtype=torch.float64)
    found = solve_inner(Bilevel({"u": u}, {"x": start}, inner_loss, inner_loss), steps=3)["x"]
    assert abs(float(found)) < 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_newton_ends_where_a_small_loss_hides_how_far_it_falls(seed: int) -> None:
    torch.manual_seed(seed)
    x, y = torch.randn(20, 64, dtype=torch.float64), torch.arange(20)
    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    start = 0.3 * x.T

    def inner_loss(v: TaskParams) -> torch.Tensor:
        losses = torch.stack([nn.functional.cross_entropy(x @ w, y) for w in v["w"]])
        return losses + 0.25 * (v["w"] - start).square().sum((1, 2)) + 0 * u.sum()

    regression = Bilevel({"u": u}, {"w": start[None]}, inner_loss, inner_loss)
    solution = {name: p.requires_grad_() for name, p in solve_inner(regression).items()}
    (g,) = torch.autograd.grad(inner_loss(solution).sum(), solution["w"])
    assert float(g.norm()) < 1e-9


def test_no_minimiser() -> None:
    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def inner_loss(v: TaskParams) -> torch.Tensor:
        return -v["x"].square().sum(1) + 0 * u.sum()

    concave = Bilevel({"u": u}, {"x": torch.ones(1, 2).double()}, inner_loss, inner_loss)
    with pytest.raises(ConfigurationError, match="not solved after 20 steps"):
        solve_inner(concave)


@pytest.mark.parametrize(
    "strategy",
    [
        Implicit(InnerSteps(400, SGD(0.2)), ConjugateGradient(60)),
        Unroll(InnerSteps(400, SGD(0.2))),
        Penalty(InnerSteps(2000, SGD(1e-4)), rho=1e4, epsilon=0),
        ValueFunction(InnerSteps(400, SGD(0.2)), 400, lam=1e4),
    ],
)
def test_strategies_that_are_taken_far_are_exact(strategy: Unroll) -> None:
    error = measure_hypergradient(problem(), strategy, make_batch())
    assert error.angle < 0.1
    assert error.length == pytest.approx(1, abs=1e-3)


def test_strategies_that_stop_early_are_not() -> None:
    """The penalty method with too few steps for its weight, and without a penalty at all."""
    late, early, never = (
        measure_hypergradient(problem(), strategy, make_batch())
        for strategy in (
            Penalty(InnerSteps(200, SGD(0.02)), rho=10, epsilon=0),
            Penalty(InnerSteps(5, SGD(0.02)), rho=10, epsilon=0),
            Penalty(InnerSteps(5, SGD(0.02)), rho=0, lam=0, multiplier=0),
        )
    )
    assert late.angle < 0.5 * early.angle
    assert early.angle > 1
    assert never.angle > 1


@pytest.mark.slow
def test_small_angles_are_not_lost_to_rounding() -> None:
    same = measure_hypergradient(
        problem(), Implicit(InnerSteps(4000, SGD(0.2)), ConjugateGradient(200)), make_batch()
    )
    assert same.angle < 1e-4


def test_a_closed_form_is_exact() -> None:
    ridge = SharedEncoder(encoder(), RidgeHead(), backend="loop")
    assert measure_hypergradient(ridge, Unroll(InnerSteps(0)), make_batch()).angle < 1e-4


def test_problems_without_a_minimiser() -> None:
    with pytest.raises(ConfigurationError, match="closed form of the support set"):
        measure_hypergradient(
            SharedEncoder(encoder(), MatchingHead(), backend="loop"),
            Unroll(InnerSteps(0)),
            make_batch(),
        )
    with pytest.raises(StructuralZeroError, match="prox"):
        measure_hypergradient(
            Initialization(classifier(encoder(), 8, 3).double(), backend="loop"),
            Unroll(InnerSteps(1, SGD())),
            make_batch(),
        )


def test_inner_losses_are_those_of_a_plain_loop() -> None:
    made, batch = problem(), make_batch()
    losses = inner_losses(made, batch, InnerSteps(3, SGD(0.3)))
    bilevel = made.bind(batch, "transductive").bilevel
    v = {name: p.detach().requires_grad_() for name, p in bilevel.inner_init.items()}
    for row in losses:
        loss = bilevel.inner_loss(v)
        torch.testing.assert_close(row, loss.detach(), rtol=1e-12, atol=0)
        gradients = torch.autograd.grad(loss.sum(), list(v.values()))
        v = {
            name: (p - 0.3 * g).detach().requires_grad_()
            for (name, p), g in zip(v.items(), gradients, strict=True)
        }
    assert losses.shape == (4, batch.tasks)
