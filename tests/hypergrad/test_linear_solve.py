from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import minres
from torch import Tensor

from fewshot_blo.bilevel import TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.linear_solve import (
    MINRES,
    ConjugateGradient,
    Dense,
    LinearSolver,
    MatVec,
    Neumann,
    Nystrom,
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
    MINRES(3),
    MINRES(3, damping=1.0),
    Nystrom(2, 0.5),
    Nystrom(9, 0.5),
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


class Indefinite(System):
    """Systems with eigenvalues of either sign, some of them zero."""

    def __init__(self, seed: int, tasks: int, size: int, zeros: int = 0) -> None:
        super().__init__(seed, tasks, size, condition=10.0)
        values, vectors = torch.linalg.eigh(self.h)
        values = values * torch.where(torch.arange(size) % 2 == 0, 1, -1)
        values[:, :zeros] = 0
        self.h = vectors @ torch.diag_embed(values) @ vectors.mT

    def times(self, x: Tensor) -> Tensor:
        return torch.einsum("tij,tj->ti", self.h, x)

    def pseudoinverse(self) -> Tensor:
        inverse: Tensor = torch.linalg.pinv(self.h, rtol=1e-9, hermitian=True)
        return torch.einsum("tij,tj->ti", inverse, self.b)


def scipy_minres(system: System, steps: int, damping: float = 0.0) -> Tensor:
    """Of SciPy, for one task after another."""
    return torch.stack(
        [
            torch.as_tensor(
                minres(h.numpy(), b.numpy(), shift=-damping, rtol=1e-15, maxiter=steps)[0]
            )
            for h, b in zip(system.h, system.b, strict=True)
        ]
    )


indefinite = st.builds(
    Indefinite, seed=st.integers(0, 1000), tasks=st.integers(1, 4), size=st.integers(2, 6)
)


@given(system=indefinite, steps=st.integers(1, 5), damping=st.sampled_from([0.0, 0.3]))
def test_minres_equals_that_of_scipy(system: Indefinite, steps: int, damping: float) -> None:
    q = join(MINRES(steps, damping, tolerance=0.0)(system.product, cut(system.b)))
    expected = scipy_minres(system, steps, damping)
    torch.testing.assert_close(q, expected, rtol=1e-8, atol=1e-10)


@given(system=indefinite)
def test_minres_solves_indefinite_systems(system: Indefinite) -> None:
    q = join(MINRES(40, tolerance=1e-13)(system.product, cut(system.b)))
    torch.testing.assert_close(q, torch.linalg.solve(system.h, system.b), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_minres_solves_singular_systems_by_the_solution_without_null_space(seed: int) -> None:
    system = Indefinite(seed, 3, 7, zeros=3)
    system.b = system.times(system.b)
    q = join(MINRES(40, tolerance=1e-12)(system.product, cut(system.b)))
    torch.testing.assert_close(q, system.pseudoinverse(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_minres_stops_where_rounding_is_left(seed: int) -> None:
    """In float32 a tolerance of 1e-10 is never met; further steps must not make it worse."""
    system = Indefinite(seed, 3, 7, zeros=3)
    system.b = system.times(system.b)
    expected = system.pseudoinverse()
    system.h, system.b = system.h.float(), system.b.float()
    for steps in (8, 60):
        q = join(MINRES(steps)(system.product, cut(system.b)))
        torch.testing.assert_close(q, expected.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_minres_leaves_the_least_residual_where_there_is_no_solution(seed: int) -> None:
    system = Indefinite(seed, 3, 7, zeros=3)
    q = join(MINRES(40)(system.product, cut(system.b)))
    least = (system.times(system.pseudoinverse()) - system.b).norm(dim=1)
    torch.testing.assert_close((system.times(q) - system.b).norm(dim=1), least, rtol=1e-8, atol=0)


def test_minres_stops_each_task_by_its_own_residual() -> None:
    system = Indefinite(0, 3, 6)
    system.h[0] = 2 * torch.eye(6)  # Solved in one step.
    system.b[1] = 0
    q = join(MINRES(100)(system.product, cut(system.b)))
    torch.testing.assert_close(q[0], system.b[0] / 2, rtol=1e-12, atol=0)
    assert (q[1] == 0).all()
    torch.testing.assert_close(q[2], torch.linalg.solve(system.h[2], system.b[2]))
    assert system.products <= 9


@given(system=systems, damping=st.sampled_from([0.05, 1.0]), seed=st.integers(0, 5))
def test_nystrom_of_all_columns_is_exact(system: System, damping: float, seed: int) -> None:
    solver = Nystrom(6, damping, seed)
    q = join(solver(system.product, cut(system.b)))
    expected = torch.linalg.solve(system.damped(damping), system.b)
    torch.testing.assert_close(q, expected, rtol=1e-8, atol=1e-10)
    assert system.products == system.h.shape[1]


@pytest.mark.parametrize("rank", [3, 5])
def test_nystrom_is_exact_from_the_rank_of_the_matrix_on(rank: int) -> None:
    system = System(1, 2, 8, condition=4.0)
    values, vectors = torch.linalg.eigh(system.h)
    values[:, :5] = 0
    system.h = vectors @ torch.diag_embed(values) @ vectors.mT
    q = join(Nystrom(rank, 0.1)(system.product, cut(system.b)))
    torch.testing.assert_close(
        q, torch.linalg.solve(system.damped(0.1), system.b), rtol=1e-8, atol=1e-8
    )
    assert system.products == rank


def test_nystrom_is_the_inverse_of_its_approximation() -> None:
    """Against the dense matrix ``C M^-1 C^T`` of the columns that it asks for."""
    system = System(2, 2, 6)
    asked: list[Tensor] = []

    def product(v: TaskParams) -> TaskParams:
        asked.append(join(v))
        return system.product(v)

    q = join(Nystrom(3, 0.2, seed=4)(product, cut(system.b)))
    units = torch.stack(asked, 2)
    assert torch.equal(units.sum(1), torch.ones(2, 3, dtype=torch.float64))
    assert torch.equal(units.mT @ units, torch.eye(3, dtype=torch.float64).expand(2, -1, -1))
    columns, rows = system.h @ units, units.mT @ system.h @ units
    approximation = columns @ torch.linalg.solve(rows, columns.mT)
    expected = torch.linalg.solve(approximation + 0.2 * torch.eye(6, dtype=torch.float64), system.b)
    torch.testing.assert_close(q, expected, rtol=1e-9, atol=1e-11)
    again = join(Nystrom(3, 0.2, seed=4)(system.product, cut(system.b)))
    assert torch.equal(q, again)
    assert not torch.equal(q, join(Nystrom(3, 0.2, seed=5)(system.product, cut(system.b))))


@pytest.mark.parametrize("solver", [MINRES(3), Nystrom(3, 0.1), Dense()])
def test_nan_of_one_task_is_its_own(solver: LinearSolver) -> None:
    system = System(0, 2, 4)
    system.h[0, 0, 0] = torch.nan
    q = join(solver(system.product, cut(system.b)))
    assert q[0].isnan().any()
    assert q[1].isfinite().all()


@pytest.mark.parametrize("settings", [{"rank": 0}, {"damping": 0.0}])
def test_nystrom_needs_a_column_and_damping(settings: dict[str, float]) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"rank is 0: it must be at|damping is 0\.0: it must be pos",
    ):
        Nystrom(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", [ConjugateGradient, MINRES, Neumann])
def test_needs_a_step(solver: type[ConjugateGradient | MINRES | Neumann]) -> None:
    with pytest.raises(ConfigurationError, match="steps is 0: it must be at least 1"):
        solver(steps=0)


@given(system=systems, damping=st.sampled_from([0.0, 0.5, 10.0]))
def test_dense_solves_systems(system: System, damping: float) -> None:
    found = join(Dense(damping)(system.product, cut(system.b)))
    exact = torch.linalg.solve(system.damped(damping), system.b)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_dense_solves_systems_of_condition_1e12() -> None:
    system = System(0, 2, 6, condition=1.0)
    values = torch.logspace(-12, 0, 6, dtype=torch.float64)
    system.h = torch.diag(values).expand(2, 6, 6)
    found = join(Dense()(system.product, cut(system.b)))
    torch.testing.assert_close(found, system.b / values, rtol=1e-10, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_dense_leaves_out_the_null_space(seed: int) -> None:
    """Indefinite of rank 3, against NumPy's pseudo-inverse."""
    system = System(seed, 2, 5)
    values = torch.tensor([-2.0, 0.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    axes = torch.linalg.qr(system.h)[0]
    system.h = axes * values @ axes.mT
    found = join(Dense()(system.product, cut(system.b)))
    inverse = np.linalg.pinv(system.h.numpy(), rcond=1e-10)
    exact = np.einsum("tij,tj->ti", inverse, system.b.numpy())
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-12)


def test_dense_is_for_few_parameters() -> None:
    with pytest.raises(ConfigurationError, match=r"2001 parameters, .* use MINRES"):
        Dense()(lambda v: v, {"v": torch.zeros(1, 2001)})
