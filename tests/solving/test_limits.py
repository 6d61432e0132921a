"""Constraints of both levels, on problems with known solutions."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fewshot_blo.errors import ConfigurationError, NotSolvedError, NotSolvedWarning
from fewshot_blo.hypergrad import BOME, Implicit, Penalty, Strategy, Unroll, ValueFunction
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.constraints import Box, Simplex
from fewshot_blo.solving.driver import solve
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.published import PUBLISHED, as_problem

TARGET = torch.tensor([1.0, -0.5], dtype=torch.float64)
STRATEGIES = [Implicit(), Unroll()]


def follower(**settings: Any) -> PlainProblem:
    """v* = u, and F is least at the target."""
    return PlainProblem(
        {"u": torch.zeros(2, dtype=torch.float64)},
        {"v": torch.zeros(2, dtype=torch.float64)},
        lambda v, u: 0.5 * (v["v"] - u["u"]).square().sum(),
        lambda v, u: 0.5 * (v["v"] - TARGET).square().sum(),
        **settings,
    )


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda x: type(x).__name__)
def test_an_outer_inequality_of_v(strategy: Strategy) -> None:
    problem = follower(outer_inequalities=lambda v, u: v["v"] - 0.4)
    solution = solve(problem, strategy, progress=False)
    expected = torch.tensor([0.4, -0.5], dtype=torch.float64)
    torch.testing.assert_close(solution.outer["u"], expected, atol=1e-3, rtol=0)
    # F falls by 0.6 for each unit that the bound of the first entry is raised.
    torch.testing.assert_close(
        solution.multipliers["outer_inequalities"],
        torch.tensor([0.6, 0.0], dtype=torch.float64),
        atol=5e-3,
        rtol=0,
    )
    assert solution.history[-1]["outer/violation"] < 1e-5


def test_an_outer_equality() -> None:
    problem = follower(outer_equalities=lambda v, u: v["v"].sum()[None] - 1.0)
    solution = solve(problem, progress=False)
    expected = torch.tensor([1.25, -0.25], dtype=torch.float64)
    torch.testing.assert_close(solution.outer["u"], expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_multipliers_move_with_steps_of_ones_own(tmp_path: Path) -> None:
    rate = partial(torch.optim.SGD, lr=0.05)

    def run(steps: int, *, resume: bool = False, folder: Path | None = None) -> Any:
        problem = follower(outer_inequalities=lambda v, u: v["v"] - 0.4)
        return solve(
            problem,
            Implicit(InnerSteps(3, SGD(0.9))),
            rate,
            steps=steps,
            every=20,
            folder=folder,
            resume=resume,
            progress=False,
        )

    whole = run(400)
    assert whole.outer["u"][0] == pytest.approx(0.4, abs=1e-3)
    run(200, folder=tmp_path)
    rest = run(400, folder=tmp_path, resume=True)
    assert torch.equal(rest.outer["u"], whole.outer["u"])


@pytest.mark.parametrize("rate", [None, partial(torch.optim.SGD, lr=0.05)], ids=["chosen", "SGD"])
def test_few_named_steps_meet_outer_constraints(rate: Any) -> None:
    """Without multipliers, a penalty of weight 10 leaves a violation of 0.06."""
    problem = follower(outer_inequalities=lambda v, u: v["v"] - 0.4)
    solution = solve(problem, Implicit(), rate, steps=40, progress=False)
    expected = torch.tensor([0.4, -0.5], dtype=torch.float64)
    error = 1e-3 if rate is None else 0.1
    torch.testing.assert_close(solution.outer["u"], expected, atol=error, rtol=0)
    assert solution.outer["u"][0] <= 0.4 + 2e-3
    assert solution.certificate is not None
    assert solution.certificate.outer_violation < 1e-3


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_outer_constraints_that_named_steps_leave_violated_are_told(steps: int) -> None:
    infeasible = follower(
        outer_equalities=lambda v, u: torch.stack([u["u"][0] - 2, v["v"][0] - 1]),
    )
    with pytest.warns(NotSolvedWarning, match="an outer constraint is violated by"):
        solution = solve(infeasible, steps=steps, progress=False)
    u, v = solution.outer["u"], solution.inner["v"]
    violation = max(abs(float(u[0]) - 2), abs(float(v[0]) - 1))
    assert solution.certificate is not None
    size = 1 + float(torch.cat([u, v]).norm())
    assert solution.certificate.outer_violation == pytest.approx(violation / size)
    assert solution.history[-1]["certificate/outer_violation"] == pytest.approx(violation / size)


@pytest.mark.slow
def test_runs_of_named_steps_with_outer_constraints_go_on_to_more(tmp_path: Path) -> None:
    def run(steps: int, *, folder: Path | None = None, resume: bool = False) -> Any:
        problem = follower(outer_inequalities=lambda v, u: (v["v"] * u["u"]).sum()[None] - 0.4)
        return solve(problem, steps=steps, folder=folder, resume=resume, progress=False)

    whole = run(24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotSolvedWarning)
        run(11, folder=tmp_path)
    rest = run(24, folder=tmp_path, resume=True)
    assert torch.equal(rest.outer["u"], whole.outer["u"])
    assert torch.equal(
        rest.multipliers["outer_inequalities"], whole.multipliers["outer_inequalities"]
    )


def test_a_constraint_that_is_no_vector() -> None:
    with pytest.raises(ConfigurationError, match=r"has shape \[\]: it must return a vector"):
        solve(follower(outer_equalities=lambda v, u: v["v"].sum()), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", [Implicit(), Unroll(), ValueFunction(), BOME()], ids=lambda x: type(x).__name__
)
def test_a_box_of_inner_variables(strategy: Strategy) -> None:
    """The second entry is held at 2 by its bound, so that u_2 is free to be 0."""
    problem = PlainProblem(
        {"u": torch.zeros(2, dtype=torch.float64)},
        {"v": torch.zeros(2, dtype=torch.float64)},
        lambda v, u: 0.5 * (v["v"] - u["u"]).square().sum(),
        lambda v, u: (v["v"] - 1).square().sum() + u["u"].square().sum() / 10,
    )
    box = Box(low=torch.tensor([-1.0, 2.0]), high=torch.tensor([3.0, 4.0]))
    try:
        solution = solve(problem, strategy, constraints={"v": box}, seconds=10, progress=False)
    except NotSolvedError:
        assert type(strategy) in (BOME, ValueFunction)  # Then they say so.
        return
    expected = torch.tensor([1 / 1.1, 0.0], dtype=torch.float64)
    torch.testing.assert_close(solution.outer["u"], expected, atol=5e-3, rtol=0)
    assert float(solution.inner["v"][1]) == pytest.approx(2.0, abs=1e-3)


@pytest.mark.slow
def test_bounds_that_depend_on_the_outer_variables() -> None:
    """v = min(2, u_1) for entries; F is least where u_1 reaches its target."""
    bounds = {"v": Box(high=lambda u: u["u"][:1].expand(2))}
    wants_more = PlainProblem(
        {"u": torch.zeros(2, dtype=torch.float64)},
        {"v": torch.zeros(2, dtype=torch.float64)},
        lambda v, u: 0.5 * (v["v"] - 2.0).square().sum(),
        lambda v, u: 0.5 * (v["v"] - 0.7).square().sum() + u["u"][1].square(),
    )
    for strategy in (Implicit(), Unroll()):
        solution = solve(wants_more, strategy, constraints=bounds, progress=False)
        assert float(solution.inner["v"][0]) == pytest.approx(0.7, abs=1e-3)
    with pytest.raises(ConfigurationError, match="bounds that depend on the outer variables"):
        solve(wants_more, ValueFunction(), constraints=bounds, progress=False)


@pytest.mark.slow
def test_a_simplex_of_inner_variables() -> None:
    """The point of the simplex next to u is the target's share."""
    target = torch.tensor([0.3, 0.7], dtype=torch.float64)
    problem = PlainProblem(
        {"u": torch.zeros(2, dtype=torch.float64)},
        {"v": torch.full((2,), 0.5, dtype=torch.float64)},
        lambda v, u: 0.5 * (v["v"] - u["u"]).square().sum(),
        lambda v, u: (v["v"] - target).square().sum() + 1e-3 * u["u"].square().sum(),
    )
    solution = solve(problem, constraints={"v": Simplex()}, progress=False)
    torch.testing.assert_close(solution.inner["v"], target, atol=2e-3, rtol=0)


@pytest.mark.parametrize("strategy", [Penalty(), Unroll(), ValueFunction(), BOME()])
def test_strategies_that_are_wrong_with_constraints_refuse_them(strategy: Strategy) -> None:
    with pytest.raises(ConfigurationError, match=r"hypergradient is wrong: use Implicit"):
        solve(follower(inner_inequalities=lambda v, u: v["v"] - u["u"]), strategy, progress=False)


def test_penalty_refuses_sets() -> None:
    with pytest.raises(ConfigurationError, match="the inner problem has constraints"):
        solve(follower(), Penalty(), constraints={"v": Box(0.0)}, progress=False)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "name",
    [
        "MacalHurter1997",
        "FalkLiu1995",
        "LamparielloSagratella2017Ex31",
        "Outrata1990Ex2e",
        "AllendeStill2013",
        "ShimizuAiyoshi1981Ex2",
        "NetworkDesignP2",
    ],
)
def test_problems_from_papers(name: str) -> None:
    published = PUBLISHED[name]
    problem, sets = as_problem(published)
    solution = solve(problem, constraints=sets, progress=False)
    value = float(published.outer_loss(solution.inner["v"], solution.outer["u"]))
    assert value == pytest.approx(published.value, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("unit", [1e-6, 1e-2, 1.0, 1e6])
@pytest.mark.parametrize("kind", ["outer_equalities", "outer_inequalities"])
def test_units_of_a_constraint_do_not_matter(unit: float, kind: str) -> None:
    """min |u - (1, 2)|² with u_1 + u_2 = 1, or at most 1: u = (0, 1), and the multiplier is 2."""
    wanted = torch.tensor([1.0, 2.0], dtype=torch.float64)
    limits: dict[str, Any] = {kind: lambda v, u: unit * (u["u"].sum() - 1)[None]}
    problem = PlainProblem(
        {"u": torch.zeros(2, dtype=torch.float64)},
        {"v": torch.zeros(2, dtype=torch.float64)},
        lambda v, u: (v["v"] - u["u"]).square().sum(),
        lambda v, u: (v["v"] - wanted).square().sum(),
        **limits,
    )
    solution = solve(problem, progress=False)
    expected = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(solution.outer["u"].detach(), expected, atol=1e-4, rtol=0)
    assert float(solution.multipliers[kind]) * unit == pytest.approx(2.0, rel=1e-3)
