"""Synthetic examples: the solutions, and which strategies reach them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.driver import solve
from fewshot_blo.studies import Synthetic
from fewshot_blo.studies.vectors.synthetic import DISTANCE

# ν moves at every step, and λ goes to zero.
LAGRANGIAN: dict[str, Any] = {
    "epsilon": 1e6,
    "epsilon_decay": 1.0,
    "rho_growth": 1.0,
    "multiplier": 0.0,
}


def found(example: Synthetic, strategy: Strategy, steps: int, lr: float = 0.2) -> float:
    """Distance to the solution, from a warm start."""
    optimizer = partial(torch.optim.SGD, lr=lr)
    constraints = example.constraints()
    solution = solve(
        example.problem(), strategy, optimizer, steps=steps, constraints=constraints, progress=False
    )
    return example.measure(solution.outer, solution.inner)[""][DISTANCE]


@pytest.mark.parametrize("example", [1, 2])
@pytest.mark.parametrize(
    "strategy",
    [
        Penalty(InnerSteps(10, SGD(0.1)), rho=1.0, lam=1.0, lam_decay=0.5, **LAGRANGIAN),
        Implicit(InnerSteps(5, SGD(0.45)), ConjugateGradient(5)),
        Unroll(InnerSteps(8, SGD(0.45))),
    ],
    ids=["penalty", "implicit", "unroll"],
)
def test_well_posed_examples_are_solved(example: int, strategy: Strategy) -> None:
    assert found(Synthetic(example=example), strategy, 60) < 1e-6


def test_penalty_solves_a_singular_example_on_which_conjugate_gradients_fail() -> None:
    example = Synthetic(example=3)
    penalty = Penalty(InnerSteps(5, SGD(1e-2)), rho=0.03, lam=0.1, lam_decay=0.99, **LAGRANGIAN)
    assert found(example, penalty, 250, 0.02) < 1e-3
    assert found(example, Implicit(InnerSteps(10, SGD(0.02)), ConjugateGradient(10)), 40) > 1


@pytest.mark.parametrize("example", [1, 2, 3, 4])
def test_solutions_are_stationary(example: int) -> None:
    """F over pairs that solve the inner problem does not fall in any direction from there."""
    study = Synthetic(example=example, seed=3)
    problem = study.problem()
    outer_loss: Callable[..., Tensor] = problem.outer_loss
    sums = example in (1, 3)
    kept = study.projection

    def reduced(u: Tensor) -> Tensor:
        v = kept @ ((1 - u) if sums else u)  # Of the minimisers the one that F likes best.
        return outer_loss({"v": v}, {"u": u})

    at = (kept @ torch.full((10,), study.solution, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(reduced(at), at)
    torch.testing.assert_close(kept @ gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
    curvature: Any = torch.autograd.functional.hessian(reduced, at.detach())
    assert float(torch.linalg.eigvalsh(curvature).min()) > -1e-9


def test_the_inner_minimiser_nearest_to_the_start_is_where_descent_ends() -> None:
    study = Synthetic(example=4)
    problem = study.problem()
    u, v = problem.outer["u"].detach(), problem.inner["v"].clone().requires_grad_()
    inner_loss: Callable[..., Tensor] = problem.inner_loss
    optimizer = torch.optim.SGD([v], 0.02)
    for _ in range(500):
        optimizer.zero_grad()
        inner_loss({"v": v}, {"u": u}).backward()
        optimizer.step()
    rows = study.measure({"u": u}, {"v": v.detach()})
    assert rows[""][DISTANCE] == pytest.approx(rows[" + retrain"][DISTANCE])
    assert rows[""]["|A (v - v*(u))|"] < 1e-9


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"example": 5}, "example is 5"), ({"rows": 11}, "rows is 11 and size is 10")],
)
def test_settings_that_make_no_sense(settings: dict[str, int], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Synthetic(**settings)  # type: ignore[arg-type]
