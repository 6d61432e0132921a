"""Which solutions overparameterised bilevel problems end at, against closed forms in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

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
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, Neumann, OneStep
from fewshot_blo.hypergrad.penalty import PenaltyStep
from fewshot_blo.kernel import SGD, Adam, InnerSteps, adapt
from fewshot_blo.solving.driver import Partial, Solution, Start, solve
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies import AntiDistillation, MinNorm, OnePoint, Spurious, Study
from fewshot_blo.studies.vectors.anti_distillation import ANGLE, APART, DISTANCE, LOW, NORM
from fewshot_blo.studies.vectors.one_point import OUTER, REMEMBERED
from fewshot_blo.studies.vectors.quadratics import Quadratics
from fewshot_blo.studies.vectors.spurious import TRAP, Y

UNROLL = Unroll(InnerSteps(25, SGD(1.0)))
QUICK = MinNorm()  # Inner descent is done after 25 steps.
assert_ended = partial(torch.testing.assert_close, rtol=0.0, atol=1e-6)


def descend(
    problem: PlainProblem,
    strategy: Strategy,
    start: Start = "cold",
    *,
    rate: float = 0.5,
    steps: int = 60,
) -> Solution:
    optimizer = partial(torch.optim.SGD, lr=rate)
    return solve(problem, strategy, optimizer, steps=steps, start=start, progress=False)


def nearest(matrix: Tensor, target: Tensor, point: Tensor) -> Tensor:
    """The solution of ``matrix w = target`` nearest to a point, by NumPy's least squares."""
    lacking = (target - matrix @ point).numpy()
    return point + torch.from_numpy(np.linalg.lstsq(matrix.numpy(), lacking, rcond=None)[0])


def least_outer(known: Quadratics) -> Tensor:
    """The outer solution of minimum norm, from NumPy's pseudo-inverses alone."""
    back = np.linalg.pinv(known.inner_w.numpy())
    slope = known.outer_u.numpy() - known.outer_w.numpy() @ back @ known.inner_u.numpy()
    start = known.start.numpy()
    settled = start + back @ (known.inner_target.numpy() - known.inner_w.numpy() @ start)
    wanted = known.outer_target.numpy() - known.outer_w.numpy() @ settled
    return torch.from_numpy(np.linalg.pinv(slope) @ wanted)


def hypergradient_at_rest(known: Quadratics, strategy: Strategy) -> Tensor:
    """At u = 0, from the inner solution that is nearest to w_0."""
    settled = known.projection(torch.zeros_like(known.inner_u[0]), known.start)
    problem = replace(known.problem(), inner={"w": settled}).at(0)
    return outer_step(strategy, problem, strategy.init())[0].gradient["u"]


def test_descent_reaches_the_nearest_inner_solution() -> None:
    known = MinNorm().quadratics
    u = torch.linspace(-1, 1, 20, dtype=torch.float64)
    problem = replace(known.problem(), outer={"u": u}).at(0)
    reached = adapt(problem.inner_loss, problem.inner_init, InnerSteps(80, SGD(1.0)))["w"][0]
    expected = nearest(known.inner_w, known.inner_target - known.inner_u @ u.detach(), known.start)
    torch.testing.assert_close(reached, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(known.projection(u.detach(), known.start), expected)


@pytest.mark.parametrize(
    ("strategy", "start"),
    [
        (UNROLL, "cold"),
        (UNROLL, "warm"),
        (UNROLL, Partial(keep=0.5)),
        (Implicit(InnerSteps(25, SGD(1.0)), Neumann(25, 1.0)), "cold"),
        (Implicit(InnerSteps(25, SGD(1.0)), ConjugateGradient(20, damping=1e-8)), "cold"),
    ],
    ids=["unroll cold", "unroll warm", "unroll partial", "neumann", "cg"],
)
def test_exact_hypergradients_end_at_the_minimum_norm(strategy: Strategy, start: Start) -> None:
    known = QUICK.quadratics
    solution = descend(known.problem(), strategy, start, steps=30)
    u, w = solution.outer["u"], solution.inner["w"]
    assert_ended(u, least_outer(known))
    # The solution sets are parallel, so a warm start comes to the same inner solution.
    target = known.inner_target - known.inner_u @ u
    assert_ended(w, nearest(known.inner_w, target, known.start))


def test_series_are_sums_of_powers() -> None:
    known = MinNorm().quadratics
    hessian, one = known.inner_w.T @ known.inner_w, torch.eye(20, dtype=torch.float64)
    powers = [torch.linalg.matrix_power(one - 0.7 * hessian, j) for j in range(5)]
    torch.testing.assert_close(known.series(5, 0.7), 0.7 * torch.stack(powers).sum(0))
    torch.testing.assert_close(known.damped(0.3), torch.linalg.inv(hessian + 0.3 * one))
    torch.testing.assert_close(known.exact(), torch.linalg.pinv(hessian, hermitian=True))


@pytest.mark.parametrize(
    ("strategy", "terms"),
    [
        (Implicit(InnerSteps(0, SGD(1.0)), OneStep(1.0)), 1),
        (Implicit(InnerSteps(0, SGD(1.0)), Neumann(2, 1.0)), 3),
        (Unroll(InnerSteps(3, SGD(1.0))), 3),
        (Unroll(InnerSteps(9, SGD(1.0)), truncate=3), 3),
    ],
    ids=["one_step", "neumann", "unroll", "truncated"],
)
def test_strategies_that_are_truncated_series(strategy: Strategy, terms: int) -> None:
    known = MinNorm().quadratics
    found = hypergradient_at_rest(known, strategy)
    torch.testing.assert_close(found, known.hypergradient(known.series(terms, 1.0)))


def test_truncated_series_end_at_another_solution() -> None:
    known = QUICK.quadratics
    series = known.series(2, 1.0)
    u = descend(
        known.problem(), Implicit(InnerSteps(25, SGD(1.0)), Neumann(1, 1.0)), steps=40
    ).outer["u"]
    assert_ended(u, known.ending(series))
    least = least_outer(known)
    assert u.norm() > least.norm()
    assert (u - least).norm() > 0.01
    # Few inner steps from w_0 solve the problem of few inner steps; warm ones go on to S(u).
    few = Unroll(InnerSteps(2, SGD(1.0)))
    assert_ended(descend(known.problem(), few).outer["u"], known.ending(series, series))
    warm = descend(known.problem(), few, "warm", steps=80)
    assert_ended(warm.outer["u"], known.ending(series))


def test_conjugate_gradients_on_a_singular_hessian() -> None:
    aligned, general = MinNorm(aligned=True).quadratics, MinNorm().quadratics
    undamped = Implicit(InnerSteps(0, SGD(1.0)), ConjugateGradient(6))
    damped = Implicit(InnerSteps(0, SGD(1.0)), ConjugateGradient(20, damping=1e-6))

    def error(known: Quadratics, strategy: Strategy) -> float:
        exact = known.hypergradient(known.exact())
        return float((hypergradient_at_rest(known, strategy) - exact).norm() / exact.norm())

    # Where the right-hand side F_w is in the range of H, the solution is that of minimum norm.
    assert error(aligned, undamped) < 1e-8
    # Elsewhere the system has no solution; damping gives that of its part in the range.
    assert error(general, Implicit(InnerSteps(0, SGD(1.0)), ConjugateGradient(3))) > 1e-2
    assert error(general, damped) < 1e-4


def test_a_penalty_picks_the_inner_solution_that_suits_the_outer_loss() -> None:
    study = QUICK
    penalty = Penalty(InnerSteps(20, SGD(0.1)), rho=10.0, lam=0.0, epsilon=0.0, multiplier=0.0)
    solution = descend(study.problem(), penalty, "warm", steps=30)
    figures = study.measure(solution.outer, solution.inner)
    assert figures[""]["inner loss"] < 1e-3
    assert figures[" + retrain"]["outer loss"] > 10 * figures[""]["outer loss"]
    exact = descend(study.problem(), UNROLL, "warm", steps=10)
    figures = study.measure(exact.outer, exact.inner)
    assert figures[" + retrain"]["outer loss"] == pytest.approx(figures[""]["outer loss"], abs=1e-6)


def test_warm_starts_project_from_one_solution_set_to_the_next() -> None:
    study, strategy = OnePoint(), Unroll(InnerSteps(1, SGD(1.0)))
    problem, state = study.problem(), strategy.init()
    optimizer = torch.optim.Adam(list(problem.outer.values()), 0.1)
    w = problem.inner["w"]
    for _ in range(20):
        step, state = outer_step(strategy, problem.at(0), state)
        row = study.features(problem.outer["x"].detach())
        expected = nearest(row, problem.outer["y"].detach(), w)
        w = step.inner["w"][0]
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-12)
        for name, leaf in problem.outer.items():
            leaf.grad = step.gradient[name]
        optimizer.step()
    assert (w - study.features(problem.outer["x"].detach())[0] * float(row @ w)).norm() > 0.1


def test_warm_weights_remember_what_retraining_forgets() -> None:
    study = OnePoint(seed=2)
    optimizer = partial(torch.optim.Adam, lr=0.1)

    def losses(start: Start) -> tuple[float, float]:
        strategy = Unroll(InnerSteps(1, SGD(1.0)))
        solution = solve(
            study.problem(), strategy, optimizer, steps=200, start=start, progress=False
        )
        figures = study.measure(solution.outer, solution.inner)
        found, again = figures[""][OUTER], figures[" + retrain"][OUTER]
        assert figures[""][REMEMBERED] == pytest.approx(100 * (again - found) / 0.5)
        return found, again

    best = study.baselines()["best single example"][OUTER]
    cold, cold_again = losses("cold")
    warm, warm_again = losses("warm")
    assert warm < 0.9 * best < best <= cold < warm_again
    # The last outer step moves the example after the inner one.
    assert cold_again == pytest.approx(cold, rel=0.02)


def test_truncation_damps_high_frequencies() -> None:
    study = AntiDistillation()
    rows = study.baselines()
    by_terms = [rows[f"{terms} terms, closed form"] for terms in study.terms]
    for name in (NORM, DISTANCE, LOW):
        values = [row[name] for row in by_terms]
        assert values == sorted(values, reverse=True), name
    assert by_terms[0][LOW] > 2 * rows["exact inverse"][LOW]
    assert by_terms[-1][DISTANCE] < 1e-3
    damped = [rows[f"damping 1/{terms}α, closed form"] for terms in study.terms]
    assert max(row[APART] for row in damped) < 10
    assert max(row[ANGLE] for row in damped) < 15


def test_low_frequencies_move_first() -> None:
    study = AntiDistillation()
    known = study.quadratics

    def low(inverse: Tensor) -> float:
        moved = {"u": -known.hypergradient(inverse)}
        return study.measure(moved, known.retrained(moved["u"]))[""][LOW]

    shares = [low(known.series(terms, 1.0)) for terms in (1, 10, 100)]
    assert shares[0] > shares[1] > shares[2] > low(known.exact())


def test_learned_targets_end_at_the_closed_form() -> None:
    known = AntiDistillation().quadratics
    strategy = Implicit(InnerSteps(15, SGD(1.0)), Neumann(9, 1.0))
    solution = descend(known.problem(), strategy, "warm", rate=10.0, steps=60)
    expected = known.ending(known.series(10, 1.0))
    torch.testing.assert_close(solution.outer["u"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rho", [0.1, 10.0, 1000.0])
def test_the_squared_gradient_has_a_minimum_that_is_no_solution(rho: float) -> None:
    at_trap = Penalty(InnerSteps(0, Adam(1e-2)), rho=rho, lam=0.0, multiplier=0.5)
    step, _ = outer_step(at_trap, Spurious(begin=TRAP).problem().at(0), at_trap.init())
    assert isinstance(step, PenaltyStep)
    assert float(step.residual) < 1e-20 * rho**2
    assert float(step.inner_gradient["y"].abs()) > 2
    strategy = Penalty(InnerSteps(50, Adam(0.02)), rho=rho, lam=0.0, epsilon=0.0)
    solution = descend(Spurious().problem(), strategy, "warm", steps=4)
    assert float(solution.inner["y"]) == pytest.approx(TRAP, abs=0.02)


def test_growing_weights_and_multipliers_do_not_leave_it() -> None:
    strategy = Penalty(InnerSteps(50, Adam(0.02)), rho=1.0, epsilon=1.0)
    solution = descend(Spurious().problem(), strategy, "warm", steps=10)
    assert float(solution.inner["y"]) == pytest.approx(TRAP, abs=0.02)


@pytest.mark.parametrize(
    "strategy",
    [
        ValueFunction(InnerSteps(50, SGD(0.05)), 50, lam=100.0),
        BOME(InnerSteps(50, SGD(0.05)), 5),
        Unroll(InnerSteps(50, SGD(0.05))),
        Implicit(InnerSteps(50, SGD(0.05))),
        Penalty(InnerSteps(50, Adam(0.02)), rho=1.0, lam=30.0, epsilon=0.0),
    ],
    ids=["value_function", "bome", "unroll", "implicit", "penalty with the inner loss"],
)
def test_others_leave_it(strategy: Strategy) -> None:
    study = Spurious()
    solution = descend(study.problem(), strategy, "warm", steps=4)
    figures = study.measure(solution.outer, solution.inner)
    assert figures[""][Y] == pytest.approx(0, abs=0.02)
    assert figures[" + retrain"][Y] == 0
    assert figures[""]["outer loss"] > 0.7


@pytest.mark.parametrize("study", [MinNorm(), OnePoint(), AntiDistillation(), Spurious()], ids=repr)
def test_pictures(study: Study, tmp_path: Path) -> None:
    outer = {name: p.detach() + 0.1 for name, p in study.problem().outer.items()}
    study.draw({"row": outer}, tmp_path / "picture.png")
    expected = {"picture.png"} | (
        {"picture-damping.png"} if isinstance(study, AntiDistillation) else set()
    )
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert all(math.isfinite(x) for row in study.baselines().values() for x in row.values())


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        (MinNorm, {"inner_equations": 20}, "inner_equations is 20 and inner_unknowns is 20"),
        (MinNorm, {"outer_equations": 0}, "outer_equations is 0"),
        (AntiDistillation, {"learned": 10}, "must be odd"),
        (AntiDistillation, {"originals": 11}, "originals is 11"),
        (AntiDistillation, {"frequencies": 5}, "it must be at least 6"),
    ],
)
def test_settings_that_make_no_sense(
    kind: type[Study], settings: dict[str, int], match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        kind(**settings)  # type: ignore[arg-type]
