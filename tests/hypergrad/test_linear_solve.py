from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot_blo.bilevel import TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.linear_solve import (
    ConjugateGradient,
    LinearSolver,
    MatVec,
    Neumann,
    OneStep,
)


class System:
    """T random symmetric positive definite systems, cut in a vector and a scalar a task."""

    def __init__(self, seed: int, tasks: int, size: int, condition: float = 100.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(tasks, size, size, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(random)[0]
        eigenvalues = torch.logspace(0, 1, size, condition, dtype=torch.float64)
        self.h = basis @ torch.diag(eigenvalues) @ basis.transpose(1, 2)
        self.b = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
        self.products = 0

    def product(self, v: TaskParams) -> TaskParams:
        self.products += 1
        return cut(torch.einsum("tij,tj->ti", self.h, join(v)))

    def damped(self, damping: float) -> Tensor:
        damped: Tensor = self.h + damping * torch.eye(self.h.shape[1], dtype=torch.float64)
        return damped


def cut(x: Tensor) -> TaskParams:
    return {"matrix": x[:, 1:].unsqueeze(1), "scalar": x[:, 0]}


def join(v: TaskParams) -> Tensor:
    return torch.cat([v["scalar"].unsqueeze(1), v["matrix"].flatten(1)], 1)


systems = st.builds(
    System, seed=st.integers(0, 1000), tasks=st.integers(1, 4), size=st.integers(2, 6)
)


@given(system=systems, damping=st.sampled_from([0.0, 0.5, 10.0]))
def test_conjugate_gradient_solves_positive_definite_systems(
    system: System, damping: float
) -> None:
    q = join(ConjugateGradient(40, damping)(system.product, cut(system.b)))
    expected = torch.linalg.solve(system.damped(damping), system.b)
    torch.testing.assert_close(q, expected, rtol=1e-8, atol=1e-10)


@given(system=systems)
def test_conjugate_gradient_minimises_over_the_krylov_space(system: System) -> None:
    """After k steps the error in the norm of H is the least over span(b, Hb, ..., H^(k-1) b)."""
    exact = torch.linalg.solve(system.h, system.b)
    q = join(ConjugateGradient(2, tolerance=0.0)(system.product, cut(system.b)))
    krylov = torch.stack([system.b, torch.einsum("tij,tj->ti", system.h, system.b)], 2)
    gram = krylov.transpose(1, 2) @ system.h @ krylov
    best = krylov @ torch.linalg.solve(gram, krylov.transpose(1, 2) @ system.b.unsqueeze(2))
    torch.testing.assert_close(q, best.squeeze(2), rtol=1e-6, atol=1e-8)
    assert exact.isfinite().all()


SOLVERS: list[LinearSolver] = [
    ConjugateGradient(3),
    ConjugateGradient(3, damping=1.0),
    Neumann(3, 0.01),
    Neumann(3, 0.01, 1.0),
    OneStep(0.1),
]


@given(system=systems, solver=st.sampled_from(SOLVERS))
def test_tasks_do_not_affect_each_other(system: System, solver: LinearSolver) -> None:
    together = join(solver(system.product, cut(system.b)))
    for t in range(len(system.b)):
        alone = System(0, 1, system.h.shape[1])
        alone.h, alone.b = system.h[t : t + 1], system.b[t : t + 1]
        q = join(solver(alone.product, cut(alone.b)))
        torch.testing.assert_close(q[0], together[t], rtol=1e-10, atol=1e-12)


@given(system=systems, solver=st.sampled_from(SOLVERS))
def test_zero_right_hand_side_has_the_zero_solution(system: System, solver: LinearSolver) -> None:
    q = join(solver(system.product, cut(torch.zeros_like(system.b))))
    assert (q == 0).all()


def test_converged_tasks_are_frozen_while_others_go_on() -> None:
    system = System(0, 3, 5)
    system.h[0] = torch.diag(1 + 1e-5 * torch.arange(5))  # one step brings it below the tolerance
    system.b[1] = 0
    short, long = (
        join(ConjugateGradient(steps, tolerance=1e-3)(system.product, cut(system.b)))
        for steps in (1, 5)
    )
    assert torch.equal(short[0], long[0])
    assert 0 < (long[0] - system.b[0]).abs().max() < 1e-4
    assert (long[1] == 0).all()
    torch.testing.assert_close(long[2], torch.linalg.solve(system.h[2], system.b[2]))


def test_stops_when_all_tasks_have_converged() -> None:
    system = System(0, 2, 4)
    ConjugateGradient(100)(system.product, cut(system.b))
    assert 4 <= system.products <= 8


def test_negative_curvature_stops_a_task_and_no_other() -> None:
    system = System(0, 2, 4)
    system.h[0] = -torch.eye(4)
    q = join(ConjugateGradient(10)(system.product, cut(system.b)))
    assert (q[0] == 0).all()
    torch.testing.assert_close(q[1], torch.linalg.solve(system.h[1], system.b[1]))


def test_nan_is_not_hidden() -> None:
    system = System(0, 2, 4)
    system.h[0, 0, 0] = torch.nan
    q = join(ConjugateGradient(3)(system.product, cut(system.b)))
    assert q[0].isnan().any()
    assert q[1].isfinite().all()


@given(system=systems, steps=st.integers(1, 5))
def test_neumann_is_a_fixed_point_iteration(system: System, steps: int) -> None:
    damping, step_size = 0.5, 0.01
    q = step_size * system.b
    for _ in range(steps):
        product = torch.einsum("tij,tj->ti", system.damped(damping), q)
        q = q - step_size * (product - system.b)
    series = join(Neumann(steps, step_size, damping)(system.product, cut(system.b)))
    torch.testing.assert_close(series, q)


def test_neumann_converges_to_the_solution() -> None:
    system = System(0, 2, 4, condition=4.0)
    q = join(Neumann(300, 0.2)(system.product, cut(system.b)))
    torch.testing.assert_close(q, torch.linalg.solve(system.h, system.b))


def test_one_step_makes_no_product() -> None:
    def product(v: TaskParams) -> TaskParams:
        raise AssertionError(v)

    matvec: MatVec = product
    b = torch.randn(2, 3)
    torch.testing.assert_close(join(OneStep(0.3)(matvec, cut(b))), 0.3 * b)


@pytest.mark.parametrize("solver", [ConjugateGradient, Neumann])
def test_needs_a_step(solver: type[ConjugateGradient] | type[Neumann]) -> None:
    with pytest.raises(ConfigurationError, match="steps is 0: a linear solver needs at least 1"):
        solver(steps=0)
