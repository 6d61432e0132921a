"""Problems from papers with settings that ``solve`` chooses: a few fast ones of every kind."""

from __future__ import annotations

import pytest
import torch

from fewshot_blo.errors import NotSolvedError
from fewshot_blo.hypergrad import Implicit
from fewshot_blo.hypergrad.implicit import ImplicitState
from fewshot_blo.solving import PlainProblem, solve
from fewshot_blo.solving.constraints import Box
from fewshot_blo.studies.published import HELD_OUT, PUBLISHED, as_problem

FAST = [
    "Yezza1996Ex41",  # Bounds that move with u.
    "GumusFloudas2001Ex4",  # Outer constraints of u and v.
    "LamparielloSagratella2017Ex35",  # A linear inner problem.
    "CalamaiVicente1994b",  # u at the border of those for which v can be feasible.
    "Outrata1990Ex2e",  # An inner constraint that becomes active on the way.
    "Dempe1992b",  # A nonlinear inner constraint; u on its bound.
    "BenAyedBlair1990a",  # Held out: u starts and ends at a vertex of its box.
    "DempeEtal2012",  # Held out: v jumps between start and solution.
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", FAST)
def test_solution_and_certificate(name: str) -> None:
    published = {**PUBLISHED, **HELD_OUT}[name]
    problem, sets = as_problem(published)
    solution = solve(problem, constraints=sets, progress=False)
    value = float(published.outer_loss(solution.inner["v"], solution.outer["u"]))
    assert value == pytest.approx(published.value, rel=1e-4, abs=1e-4)
    assert solution.converged
    torch.testing.assert_close(solution.outer["u"], published.solution.u, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(solution.inner["v"], published.solution.v, rtol=1e-2, atol=1e-2)
    certificate = solution.certificate
    assert certificate is not None
    assert certificate.inner_residual < 1e-5
    assert certificate.inner_distance < 3e-4
    assert certificate.inner_elsewhere < 1e-5


@pytest.mark.parametrize("name", ["Outrata1990Ex2e", "CalamaiVicente1994b", "Yezza1996Ex41"])
@pytest.mark.parametrize("smoothing", [1e-1, 1e-3])
def test_hypergradient_by_finite_differences(name: str, smoothing: float) -> None:
    """Of F at the smoothed inner solution, which is solved anew for every u."""
    published = PUBLISHED[name]
    problem, sets = as_problem(published)
    inner_sets = {n: s for n, s in sets.items() if n == "v"}
    state = ImplicitState(
        smoothing=torch.tensor(smoothing, dtype=torch.float64),
        inner_scale=torch.tensor(1.5, dtype=torch.float64),
        outer_scale=torch.tensor(2.5, dtype=torch.float64),
    )
    u = problem.outer["u"]

    def step() -> tuple[float, torch.Tensor]:
        found = Implicit().hypergradient(problem.at(0, inner_sets), state)
        return float(found.outer_loss), found.gradient["u"]

    gradient, h = step()[1], 1e-5
    for entry in range(len(u)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                u[entry] += sign * h
            values.append(step()[0])
            with torch.no_grad():
                u[entry] -= sign * h
        expected = (values[0] - values[1]) / (2 * h)
        assert float(gradient[entry]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_where_no_v_is_feasible_the_hypergradient_leads_back() -> None:
    """v between u and 1 - u: none for u > 1/2, though F asks for u = 2."""
    problem = PlainProblem(
        {"u": torch.tensor([1.5], dtype=torch.float64)},
        {"v": torch.zeros(1, dtype=torch.float64)},
        lambda v, u: v["v"].square().sum(),
        lambda v, u: (u["u"] - 2).square().sum(),
    )
    between = Box(lambda u: u["u"], lambda u: 1 - u["u"])
    solution = solve(problem, constraints={"v": between}, progress=False)
    assert float(solution.outer["u"]) == pytest.approx(0.5, abs=1e-4)


def test_no_v_is_feasible_for_any_u() -> None:
    problem = PlainProblem(
        {"u": torch.tensor([1.0], dtype=torch.float64)},
        {"v": torch.zeros(1, dtype=torch.float64)},
        lambda v, u: (v["v"] - u["u"]).square().sum(),
        lambda v, u: (v["v"] - 2).square().sum() + u["u"].square().sum(),
        inner_inequalities=lambda v, u: torch.cat([v["v"] + 1, 1 - v["v"]]),
    )
    with pytest.raises(NotSolvedError, match="there may be no feasible v"):
        solve(problem, progress=False)


def test_a_local_inner_minimiser_is_told() -> None:
    """Moral hazard: conditions of stationarity alone give a wrong solution, F = 0.01."""
    problem, sets = as_problem(PUBLISHED["Mirrlees1999"])
    with pytest.raises(NotSolvedError, match=r"lower by 0.47 .* v is a local minimiser only"):
        solve(problem, constraints=sets, progress=False)


@pytest.mark.slow
def test_another_start_with_a_lower_outer_loss_is_taken() -> None:
    """u = 3 with F = 9 is a local solution, to which the start leads; u = 1 with F = 5 is not."""
    published = PUBLISHED["ClarkWesterberg1990a"]
    problem, sets = as_problem(published)
    solution = solve(problem, constraints=sets, progress=False)
    assert float(solution.outer["u"]) == pytest.approx(1.0, abs=1e-3)
    assert problem.outer["u"].detach().equal(solution.outer["u"])
