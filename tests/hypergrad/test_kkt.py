"""Constrained inner problems, against SciPy and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from fewshot_blo.errors import DivergenceError
from fewshot_blo.hypergrad.interior_point import solve_constrained
from fewshot_blo.hypergrad.kkt import Constrained, adjoint

N, K, M, U = 5, 6, 2, 3
LEAST = 1e-9


class Program:
    """A random convex problem with a quartic term, whose parts depend on u."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        a = torch.randn(N, N, dtype=torch.float64)
        self.h, self.q = a @ a.T + 0.1 * torch.eye(N), torch.randn(N, dtype=torch.float64)
        self.c, self.d = torch.randn(K, N, dtype=torch.float64), torch.rand(K, dtype=torch.float64)
        self.e = torch.randn(M, N, dtype=torch.float64)
        self.b = torch.randn(N, U, dtype=torch.float64)
        self.u = torch.randn(U, dtype=torch.float64)

    def objective(self, x: Tensor, u: Tensor) -> Tensor:
        return 0.5 * x @ self.h @ x + (self.q + self.b @ u) @ x + 0.1 * x.pow(4).sum()

    def equalities(self, x: Tensor, u: Tensor) -> Tensor:
        return self.e @ x - 0.1 * u[0]

    def inequalities(self, x: Tensor, u: Tensor) -> Tensor:
        return self.c @ x + 0.1 * x.square().sum() - self.d - 0.1 * u[1].square()

    def at(self, u: Tensor) -> Constrained:
        return Constrained(
            lambda x: self.objective(x, u),
            lambda x: self.equalities(x, u),
            lambda x: self.inequalities(x, u),
        )

    def by_scipy(self) -> Tensor:
        def of(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any], Any]:
            return lambda x: function(torch.from_numpy(x), self.u).numpy()

        found = minimize(
            of(self.objective),
            torch.zeros(N, dtype=torch.float64).numpy(),
            method="SLSQP",
            constraints=[
                {"type": "eq", "fun": of(self.equalities)},
                {"type": "ineq", "fun": lambda x: -of(self.inequalities)(x)},
            ],
            options={"ftol": 1e-13, "maxiter": 500},
        )
        return torch.from_numpy(found.x)


@pytest.mark.parametrize("seed", range(4))
def test_solution_and_multipliers(seed: int) -> None:
    program = Program(seed)
    point = solve_constrained(program.at(program.u), torch.zeros(N, dtype=torch.float64), LEAST)
    torch.testing.assert_close(point.x, program.by_scipy(), atol=1e-4, rtol=0)
    residual = program.at(program.u).conditions(point.x, point.y, point.z, LEAST)
    assert residual.abs().max() < 1e-8
    assert (point.z > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_derivative_by_finite_differences(seed: int) -> None:
    program = Program(seed)
    u = program.u.clone().requires_grad_()
    point = solve_constrained(program.at(u), torch.zeros(N, dtype=torch.float64), LEAST)
    slope = torch.randn(N, dtype=torch.float64)
    found = adjoint(program.at(u), point, slope, {"u": u})["u"]
    step = 1e-5

    def value(shift: Tensor) -> Tensor:
        return slope @ solve_constrained(program.at(program.u + shift), point.x, LEAST).x

    shifts = step * torch.eye(U, dtype=torch.float64)
    expected = torch.stack([(value(s) - value(-s)) / (2 * step) for s in shifts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_linear_program() -> None:
    c = torch.tensor([1.0, -2.0], dtype=torch.float64)
    box = Constrained(lambda x: c @ x, lambda x: x[:0], lambda x: torch.cat([x - 1, -x]))
    point = solve_constrained(box, torch.zeros(2, dtype=torch.float64), LEAST)
    expected = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(point.x, expected, atol=1e-6, rtol=0)


def test_no_feasible_point() -> None:
    x = torch.zeros(1, dtype=torch.float64)
    empty = Constrained(lambda x: x.sum(), lambda x: x[:0], lambda x: torch.cat([x + 1, 1 - x]))
    with pytest.raises(DivergenceError, match="is there a feasible point"):
        solve_constrained(empty, x, LEAST)
