from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import Quadratic, assert_same, make_batch

from fewshot_blo.bilevel import Bilevel, OuterStep
from fewshot_blo.errors import ConfigurationError, StructuralZeroError
from fewshot_blo.heads import LinearHead
from fewshot_blo.hypergrad import Penalty, outer_step
from fewshot_blo.hypergrad.penalty import PenaltyStep
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.problems import Initialization, SharedEncoder


def solved(quadratic: Quadratic, rho: float, lam: float, nu: torch.Tensor) -> torch.Tensor:
    """The minimiser over v of ``F + <ν, G_v> + ρ/2 |G_v|² + λ G``, ``[T, inner]``."""
    a, target = quadratic.a, quadratic.b @ quadratic.u.detach() + quadratic.c
    identity = torch.eye(a.shape[1], dtype=torch.float64)
    right = quadratic.d + torch.einsum("tij,tj->ti", rho * a + lam * identity, target)
    curvature = identity + rho * a @ a + lam * a
    v: torch.Tensor = torch.linalg.solve(curvature, right - torch.einsum("tij,tj->ti", a, nu))
    return v


def penalty(rho: float, **settings: float) -> Penalty:
    """A penalty method whose descent converges: curvatures reach 1 + 16 ρ."""
    fixed: dict[str, Any] = {"lam": 0.0, "multiplier": 0.0, **settings}
    return Penalty(InnerSteps(int(60 * (2 + rho)), SGD(1 / (3 + 17 * rho))), rho=rho, **fixed)


def error(quadratic: Quadratic, step: OuterStep) -> float:
    return float((step.gradient["u"] - quadratic.exact()).norm() / quadratic.exact().norm())


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_equals_the_formula(lam: float) -> None:
    """λ enters the objective over v only; ν and ρ enter both."""
    quadratic = Quadratic.random()
    strategy = penalty(2.0, lam=lam, multiplier=0.2)
    step, _ = outer_step(strategy, quadratic.bilevel(), strategy.init())
    assert isinstance(step, PenaltyStep)
    nu = torch.full_like(quadratic.c, 0.2)
    v = solved(quadratic, 2.0, lam, nu)
    g_v = torch.einsum("tij,tj->ti", quadratic.a, v - quadratic.minimiser())
    assert_same({"v": Quadratic.join(step.inner)}, {"v": v}, 1e-9)
    assert_same(step.gradient, {"u": quadratic.hypergradient(v, -(nu + 2.0 * g_v))}, 1e-9)
    assert_same({"g": Quadratic.join(step.inner_gradient)}, {"g": g_v}, 1e-8)
    assert float(step.residual.max()) < 1e-16


@pytest.mark.parametrize("make", [lambda: initialization(0.1), lambda: shared_encoder(0.1)])
def test_gradients_over_both_variables_are_those_of_two_passes(
    make: Callable[[], Initialization | SharedEncoder],
) -> None:
    """Where the inner steps have no effect the objective is known: it is differentiated twice."""
    strategy = Penalty(InnerSteps(1, SGD(0.0)), rho=0.7, lam=0.3, multiplier=0.2)
    few_shot = make()
    own, problem = (few_shot.bind(make_batch(), "support").bilevel for _ in range(2))
    step, _ = outer_step(strategy, own, strategy.init())
    assert isinstance(step, PenaltyStep)
    v = {name: p.detach().requires_grad_() for name, p in problem.inner_init.items()}
    leaves, outer = list(v.values()), dict(problem.outer)
    g = problem.inner_loss(v)
    g_v = torch.autograd.grad(g.sum(), leaves, create_graph=True)
    terms = [(0.2 * x + 0.35 * x * x).flatten(1).sum(1) for x in g_v]
    upper = problem.outer_loss(v) + torch.stack(terms).sum(0)
    over_v = torch.autograd.grad(upper.sum(), leaves, retain_graph=True)
    over_u = torch.autograd.grad(upper.mean(), list(outer.values()))
    assert_same(step.gradient, dict(zip(outer, over_u, strict=True)), 1e-12)
    lower = [(x + 0.3 * y).square().flatten(1).sum(1) for x, y in zip(over_v, g_v, strict=True)]
    assert_same({"r": step.residual}, {"r": torch.stack(lower).sum(0).detach()}, 1e-12)


def test_the_last_gradients_take_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass for the gradient of G, and one through it."""
    strategy, passes, grad = Penalty(InnerSteps(0, Adam(1e-2)), rho=0.1), [], torch.autograd.grad
    problem = initialization(0.1).bind(make_batch(), "support").bilevel

    def counted(*args: Any, **options: Any) -> Any:
        passes.append(args)
        return grad(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    strategy.hypergradient(problem, strategy.init())
    assert len(passes) == 2


def test_at_the_minimiser_the_gradient_is_the_implicit_one_for_any_rho() -> None:
    """The lemma: ``F_u + G_uv (ν + ρ G_v) = F_u - G_uv G_vv^-1 F_v`` at v^."""
    quadratic = Quadratic.random()
    for rho in (0.1, 1.0, 10.0):
        strategy = penalty(rho)
        step, _ = outer_step(strategy, quadratic.bilevel(), strategy.init())
        v = Quadratic.join(step.inner)
        q = torch.linalg.solve(quadratic.a, v - quadratic.d)
        assert_same(step.gradient, {"u": quadratic.hypergradient(v, q)}, 1e-8)


def test_error_falls_as_one_over_rho() -> None:
    quadratic = Quadratic.random()
    errors = []
    for rho in (10.0, 100.0, 1000.0):
        start = solved(quadratic, rho, 0.0, torch.zeros_like(quadratic.c))
        strategy = Penalty(InnerSteps(1, SGD(0.0)), rho=rho, lam=0.0, multiplier=0.0)
        errors.append(
            error(quadratic, outer_step(strategy, quadratic.bilevel(start), strategy.init())[0])
        )
    assert errors[0] < 0.2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.02)


@pytest.mark.slow
def test_multipliers_drive_the_error_to_zero_at_fixed_rho() -> None:
    quadratic = Quadratic.random()
    strategy = penalty(2.0, epsilon=1e6, rho_growth=1.0)
    state = strategy.init()
    errors = []
    for _ in range(12):
        step, state = outer_step(strategy, quadratic.bilevel(), state)
        errors.append(error(quadratic, step))
    assert errors[0] > 0.05
    assert errors[-1] < 1e-4
    assert errors == sorted(errors, reverse=True)
    expected = -torch.linalg.solve(quadratic.a, quadratic.minimiser() - quadratic.d)
    assert_same({"nu": Quadratic.join(state.multipliers)}, {"nu": expected}, 1e-3)


def with_norms(u: float, v: float, multiplier: float = 0.1) -> PenaltyStep:
    """A step of two tasks whose ``|∇_u|²`` is u² and whose mean ``|∇_v|²`` is v²."""
    zeros = torch.zeros(2, 1, dtype=torch.float64)
    g_v = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    residual = torch.tensor([0.5, 1.5], dtype=torch.float64) * v**2
    gradient = {"u": torch.tensor([u], dtype=torch.float64)}
    nu = {"v": torch.full_like(zeros, multiplier)}
    return PenaltyStep(gradient, {"v": zeros}, zeros[:, 0], zeros[:, 0], nu, {"v": g_v}, residual)


def test_schedules_advance_as_documented_when_stationary() -> None:
    strategy = Penalty(
        rho=2.0,
        lam=0.5,
        epsilon=5.01,
        multiplier=0.1,
        rho_growth=1.5,
        lam_decay=0.5,
        epsilon_decay=0.8,
    )
    state = strategy.advance(strategy.init(), with_norms(3.0, 4.0))
    assert {k: float(s) for k, s in state.schedules.items()} == pytest.approx(
        {"rho": 3.0, "lam": 0.25, "epsilon": 5.01 * 0.8, "outer_step": 1.0}
    )
    assert state.multipliers["v"].flatten().tolist() == pytest.approx([2.1, -3.9])
    later = strategy.advance(state, with_norms(0.0, 0.0, multiplier=2.1))
    assert float(later.multipliers["v"][0]) == pytest.approx(5.1)


@pytest.mark.parametrize(("u", "v"), [(3.1, 4.0), (3.0, 4.1), (float("nan"), 0.0)])
def test_schedules_stay_when_not_stationary(u: float, v: float) -> None:
    strategy = Penalty(rho=2.0, lam=0.5, epsilon=5.0, multiplier=0.1)
    state = strategy.advance(strategy.init(), with_norms(u, v))
    assert (float(state.rho), float(state.lam), float(state.epsilon)) == (2.0, 0.5, 5.0)
    assert state.multipliers["v"].flatten().tolist() == pytest.approx([0.1, 0.1])


def test_cold_start_forgets_what_belongs_to_tasks() -> None:
    strategy = Penalty(rho=1.0, epsilon=1e6)
    state = strategy.advance(strategy.init(), with_norms(1.0, 1.0))
    assert state.tasks(slice(1, 2)).multipliers["v"].shape == (1, 1)
    cold = state.cold()
    assert not cold.inner
    assert not cold.multipliers
    assert cold.schedules == state.schedules


def initialization(prox: float, step_size: float | None = None) -> Initialization:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3)).double()
    return Initialization(network, prox=prox, step_size=step_size, backend="loop")


def shared_encoder(prox: float) -> SharedEncoder:
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4)).double()
    return SharedEncoder(
        encoder, LinearHead(), prox=prox, start="learned", way=3, features=4, backend="loop"
    )


@pytest.mark.parametrize(
    ("problem", "variable"),
    [
        (lambda: initialization(0.0), "'1.weight'"),
        (lambda: initialization(0.1, 0.1), "'step_size/1.weight'"),
        (lambda: shared_encoder(0.0), "'start/head.weight'"),
    ],
)
def test_structural_zeros_name_the_variable_and_the_remedy(
    problem: Callable[[], Initialization | SharedEncoder], variable: str
) -> None:
    strategy = Penalty(InnerSteps(1, Adam(1e-2)), rho=0.1)
    with pytest.raises(StructuralZeroError, match=f"Penalty: .*{variable}.*prox > 0.*Unroll"):
        outer_step(strategy, problem().bind(make_batch(), "support").bilevel, strategy.init())


@pytest.mark.parametrize("problem", [lambda: initialization(0.1), lambda: shared_encoder(0.1)])
def test_a_proximal_term_gives_every_variable_a_gradient(
    problem: Callable[[], Initialization | SharedEncoder],
) -> None:
    strategy = Penalty(InnerSteps(1, Adam(1e-2)), rho=0.1)
    step, _ = outer_step(strategy, problem().bind(make_batch(), "support").bilevel, strategy.init())
    assert all(gradient.abs().max() > 0 for gradient in step.gradient.values())


@pytest.mark.parametrize(
    "settings", [{"epsilon": -1.0}, {"rho": -1.0}, {"rho_growth": 0.5}, {"lam_decay": 2.0}]
)
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings)) + " is"):
        Penalty(**settings)  # type: ignore[arg-type]


def test_rounds_of_a_task_do_not_depend_on_the_others() -> None:
    scales = torch.tensor([[1.0, 1.0], [30.0, 0.03], [1e-2, 1e2]], dtype=torch.float64)

    def step_of(tasks: slice) -> OuterStep:
        a = scales[tasks]
        u = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        problem = Bilevel(
            {"u": u},
            {"v": torch.zeros(len(a), 2, dtype=torch.float64)},
            lambda v: (a * ((v["v"] - u).cosh() + 0.1 * v["v"].square())).sum(1),
            lambda v: (v["v"] - 3).square().sum(1),
        )
        strategy = Penalty(rho=3.0, lam=0.0)
        return strategy.hypergradient(problem, strategy.init())

    together = step_of(slice(None))
    alone = torch.cat([step_of(slice(t, t + 1)).inner["v"] for t in range(3)])
    torch.testing.assert_close(together.inner["v"], alone, rtol=0, atol=1e-12)
