"""Inequality constraints by slack variables, on a problem with a known solution."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.driver import Solution, solve
from fewshot_blo.solving.inequalities import next_multipliers, with_inequalities
from fewshot_blo.solving.problem import PlainProblem

DESCENT = partial(torch.optim.SGD, lr=0.1)
TARGET = torch.tensor([1.0, -0.5], dtype=torch.float64)


def follower() -> PlainProblem:
    """v* = u, and F is least at the target."""
    return PlainProblem(
        {"u": torch.zeros(2, dtype=torch.float64)},
        {"v": torch.zeros(2, dtype=torch.float64)},
        lambda v, u: 0.5 * (v["v"] - u["u"]).square().sum(),
        lambda v, u: 0.5 * (v["v"] - TARGET).square().sum(),
    )


def at_most(bound: float, *, weight: float = 5.0, rounds: int = 5) -> tuple[Solution, Tensor]:
    """Solves with v_1 and v_2 at most so large, by implicit differentiation."""
    mu: Tensor | None = None
    strategy = Implicit(InnerSteps(3, SGD(0.9)), ConjugateGradient(2))
    for _ in range(rounds):
        problem = with_inequalities(
            follower(), lambda v, u: v["v"] - bound, weight=weight, multipliers=mu
        )
        solution = solve(problem, strategy, DESCENT, steps=100)
        mu = next_multipliers(
            problem, lambda v, u: v["v"] - bound, solution.inner, weight=weight, multipliers=mu
        )
    assert mu is not None
    return solution, mu


def test_an_active_constraint_holds_with_the_multiplier_of_the_solution() -> None:
    solution, mu = at_most(0.4)
    expected = torch.tensor([0.4, -0.5], dtype=torch.float64)
    torch.testing.assert_close(solution.outer["u"], expected, atol=1e-4, rtol=0)
    # F falls by 0.6 for each unit that the bound of the first entry is raised.
    torch.testing.assert_close(mu, torch.tensor([0.6, 0.0], dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_constraint_that_is_not_active_changes_nothing() -> None:
    solution, mu = at_most(2.0, rounds=1)
    torch.testing.assert_close(solution.outer["u"], TARGET, atol=1e-4, rtol=0)
    assert torch.equal(mu, torch.zeros(2, dtype=torch.float64))


def test_the_penalty_is_that_of_the_best_slack_variables() -> None:
    mu = torch.tensor([0.3, 0.0], dtype=torch.float64)
    problem = with_inequalities(follower(), lambda v, u: v["v"] - 0.1, weight=2.0, multipliers=mu)
    squares = torch.linspace(0, 2, 200001, dtype=torch.float64)
    own_loss: Callable[..., Tensor] = follower().outer_loss
    loss: Callable[..., Tensor] = problem.outer_loss
    for values in ([0.5, -0.5], [-0.4, 0.1], [0.05, 0.2]):
        v = {"v": torch.tensor(values, dtype=torch.float64)}
        expected = own_loss(v, {})
        for value, m in zip(values, mu, strict=True):
            gap = value - 0.1 + squares
            expected = expected + (m * gap + gap.square()).min()  # The weight is 2.
        torch.testing.assert_close(loss(v, {}), expected)


@pytest.mark.parametrize(
    "strategy",
    [
        Unroll(InnerSteps(5, SGD(0.9))),
        Implicit(InnerSteps(5, SGD(0.9)), ConjugateGradient(2)),
        Penalty(InnerSteps(20, SGD(9e-3)), rho=100.0, lam=0.0, epsilon=0.0),
    ],
    ids=["unroll", "implicit", "penalty"],
)
def test_without_multipliers_the_miss_is_theirs_over_the_weight(strategy: Strategy) -> None:
    problem = with_inequalities(follower(), lambda v, u: v["v"][:1] - 0.4, weight=10.0)
    solution = solve(problem, strategy, DESCENT, steps=100)
    # The first entry is least at (1 + 0.4 γ) / (1 + γ).
    expected = torch.tensor([(1 + 4) / 11, -0.5], dtype=torch.float64)
    torch.testing.assert_close(solution.outer["u"], expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("weight", "shape", "match"),
    [(0.0, (1,), "weight of the inequality is 0.0"), (1.0, (), r"shape \[\]: .* vector")],
)
def test_what_makes_no_sense(weight: float, shape: tuple[int, ...], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        with_inequalities(follower(), lambda v, u: torch.zeros(shape), weight=weight)
