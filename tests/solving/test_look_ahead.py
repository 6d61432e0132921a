"""How far u is from a solution, and whether v is the inner solution that counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import NotSolvedError, NotSolvedWarning
from fewshot_blo.hypergrad import BOME, Implicit, Reptile, Unroll
from fewshot_blo.solving.certify import certify
from fewshot_blo.solving.chosen import chosen_optimizer
from fewshot_blo.solving.constraints import Box
from fewshot_blo.solving.driver import solve
from fewshot_blo.solving.look_ahead import distance_ahead
from fewshot_blo.solving.problem import PlainProblem

Loss = Callable[[Mapping[str, Tensor], Params], Tensor]


def problem(u: list[float], outer_loss: Loss, curvature: float = 1.0) -> PlainProblem:
    """``v* = u``."""
    start = torch.tensor(u, dtype=torch.float64)
    return PlainProblem(
        {"u": start},
        {"v": torch.zeros_like(start)},
        lambda v, u: curvature / 2 * (v["v"] - u["u"]).square().sum(),
        outer_loss,
    )


def bowl(v: Mapping[str, Tensor], u: Params) -> Tensor:
    """Least at u = 1, of curvature 4."""
    del u
    return 2 * (v["v"] - 1).square().sum()


def ahead(given: PlainProblem, box: Box | None = None) -> float:
    bilevel = given.at(0)
    return distance_ahead(bilevel, dict(bilevel.inner_init), {} if box is None else {"u": box})


@pytest.mark.parametrize("curvature", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("u", [[1.5, 1.0], [1.0, 1.0001], [-20.0, 3.0]])
def test_the_distance_of_a_bowl(u: list[float], curvature: float) -> None:
    here = torch.tensor(u, dtype=torch.float64)
    given = problem(u, bowl, curvature)
    exact = float((here - 1).norm() / (1 + here.norm()))
    assert ahead(given) == pytest.approx(exact, rel=1e-5)
    assert torch.equal(given.outer["u"].detach(), here)


def test_no_distance_at_a_solution() -> None:
    assert ahead(problem([1.0, 1.0], bowl)) == 0
    assert ahead(problem([0.5, 0.5], bowl), Box(0.0, 0.5)) == 0  # The box ends there.


@pytest.mark.parametrize(
    "loss", [lambda v, u: v["v"].sum(), lambda v, u: -v["v"].square().sum()], ids=["plane", "cap"]
)
def test_no_end_ahead_where_the_loss_falls_as_fast(loss: Loss) -> None:
    assert ahead(problem([0.5, 0.5], loss)) > 1e6


def test_no_end_ahead_where_the_inner_problem_has_none() -> None:
    given = problem([0.5, 0.5], lambda v, u: v["v"].square().sum() / (u["u"] > 0.4999).all())
    assert ahead(given) == math.inf


def double_well(outer_loss: Loss, inner_tilt: float) -> PlainProblem:
    """``(v² - 1)² + tilt v``: minima at about 1 and -1."""
    return PlainProblem(
        {"u": torch.zeros(1, dtype=torch.float64)},
        {"v": torch.ones(1, dtype=torch.float64)},
        lambda v, u: (
            ((v["v"].square() - 1).square() + inner_tilt * v["v"]).sum() + 0 * u["u"].sum()
        ),
        outer_loss,
    )


@pytest.mark.parametrize(
    ("tilt", "at_one", "said"),
    [
        (0.1, lambda v, u: v["v"].sum() + u["u"].square().sum(), "the inner loss is lower by"),
        (0.0, lambda v, u: v["v"].sum() + u["u"].square().sum(), "the outer loss is lower by"),
        (0.0, lambda v, u: -v["v"].sum() + u["u"].square().sum(), None),
        (-0.1, lambda v, u: v["v"].sum() + u["u"].square().sum(), None),
    ],
)
def test_another_minimiser_of_the_inner_loss_is_told(
    tilt: float, at_one: Loss, said: str | None
) -> None:
    """At v = 1, within a box: a lower G at -1, an equal one with a lower or a higher F."""
    bilevel = double_well(at_one, tilt).at(0, {"v": Box(-2.0, 2.0)})
    v = {"v": torch.full((1, 1), 1.0 - tilt / 8, dtype=torch.float64)}
    found = certify(bilevel, v, {}, elsewhere=True)
    doubts = [doubt for doubt in found.doubts() if "is lower by" in doubt]
    assert [doubt.startswith(said or "?") for doubt in doubts] == ([] if said is None else [True])


def test_quasi_newton_steps_need_derivatives_of_the_loss() -> None:
    """BOME's and Reptile's are none, nor those of Unroll that leave steps out."""
    given = problem([0.0], bowl)
    names = {
        type(chosen_optimizer(given, given.at(0), strategy, {})).__name__
        for strategy in (BOME(), Reptile(), Unroll(first_order=True), Unroll(truncate=1))
    }
    assert names == {"SpectralDescent"}
    exact = [
        chosen_optimizer(given, given.at(0), strategy, {}) for strategy in (Implicit(), Unroll())
    ]
    assert [type(optimizer).__name__ for optimizer in exact] == ["QuasiNewton"] * 2
    assert not any(optimizer.for_bends for optimizer in exact)


def test_flat_directions_of_the_inner_loss_are_told() -> None:
    """With (v - u)⁴ implicit differentiation sees nothing, and u stays where it starts."""
    given = problem([0.0], bowl)
    flat = replace(given, inner_loss=lambda v, u: (v["v"] - u["u"]).pow(4).sum())
    with pytest.raises(NotSolvedError, match="100 % of the gradient of F over v are along"):
        solve(flat, progress=False)
    assert solve(given, progress=False).converged


def test_parameters_that_the_inner_loss_does_not_have_are_told() -> None:
    given = problem([0.0], bowl)
    both = replace(
        given,
        inner={**given.inner, "w": torch.zeros(1, dtype=torch.float64)},
        outer_loss=lambda v, u: bowl(v, u) + (v["w"] - 1).square().sum(),
    )
    with pytest.warns(NotSolvedWarning, match="along directions in which G is flat"):
        solve(both, progress=False)
