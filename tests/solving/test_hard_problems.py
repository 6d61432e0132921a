"""Problems that are badly scaled, of no use, or interrupted, with no setting named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import DivergenceError, NotSolvedError
from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll, ValueFunction
from fewshot_blo.solving.constraints import Box
from fewshot_blo.solving.driver import Solution, solve
from fewshot_blo.solving.problem import PlainProblem

DOUBLE = torch.float64


def followed(inner_loss: Any, outer_loss: Any = None, n: int = 2, **settings: Any) -> PlainProblem:
    """F is ``|v - 1|²`` where none is given; from u = v = 0."""

    def bowl(v: Mapping[str, Tensor], u: Params) -> Tensor:
        del u
        return (v["v"] - 1).square().sum()

    zero = torch.zeros(n, dtype=DOUBLE)
    losses = (inner_loss, outer_loss or bowl)
    return PlainProblem({"u": zero.clone()}, {"v": zero.clone()}, *losses, **settings)


def near(v: Mapping[str, Tensor], u: Params) -> Tensor:
    return (v["v"] - u["u"]).square().sum()


def test_an_inner_loss_of_condition_1e5() -> None:
    """v* = u."""
    curvatures = torch.logspace(-5, 0, 6, dtype=DOUBLE)
    given = followed(lambda v, u: curvatures @ (v["v"] - u["u"]).square(), n=6)
    solution = solve(given, progress=False)
    torch.testing.assert_close(solution.outer["u"], torch.ones(6, dtype=DOUBLE), atol=1e-5, rtol=0)


def test_many_outer_variables_of_condition_1e3() -> None:
    curvatures = torch.logspace(-2, 1, 250, dtype=DOUBLE)
    target = torch.linspace(-1, 1, 250, dtype=DOUBLE)
    given = followed(near, lambda v, u: curvatures @ (v["v"] - target).square(), n=250)
    solution = solve(given, progress=False)
    torch.testing.assert_close(solution.outer["u"], target, atol=1e-4, rtol=0)
    assert solution.step < 600


def test_six_decays_of_a_logistic_regression_against_scipy() -> None:
    """Features of scales from 0.1 to 10. SciPy differentiates nothing here."""
    generator = torch.Generator().manual_seed(1)
    d, n = 6, 60
    scale = torch.logspace(-1, 1, d, dtype=DOUBLE)
    x = torch.randn(2 * n, d, generator=generator, dtype=DOUBLE) * scale
    w = torch.randn(d, generator=generator, dtype=DOUBLE)
    heads = torch.sigmoid(x @ w / 2) > torch.rand(2 * n, generator=generator, dtype=DOUBLE)
    y = heads.double() * 2 - 1
    softplus = torch.nn.functional.softplus

    def fit(v: Mapping[str, Tensor], part: slice) -> Tensor:
        return softplus(-y[part] * (x[part] @ v["w"] + v["b"])).mean()

    first, second = slice(None, n), slice(n, None)
    given = PlainProblem(
        {"decay": torch.zeros(d, dtype=DOUBLE)},
        {"w": torch.zeros(d, dtype=DOUBLE), "b": torch.tensor(0.0, dtype=DOUBLE)},
        lambda v, u: fit(v, first) + u["decay"].exp() @ v["w"].square() / 2,
        lambda v, u: fit(v, second) + 1e-2 * u["decay"].square().sum(),
    )
    solution = solve(given, progress=False)

    xs, ys = x.numpy(), y.numpy()

    def trained(decay: np.ndarray) -> np.ndarray:
        def value(z: np.ndarray) -> tuple[float, np.ndarray]:
            margin = ys[first] * (xs[first] @ z[:d] + z[d])
            share = -ys[first] / (1 + np.exp(margin)) / n
            loss = np.logaddexp(0, -margin).mean() + np.exp(decay) @ z[:d] ** 2 / 2
            return loss, np.append(xs[first].T @ share + np.exp(decay) * z[:d], share.sum())

        found = minimize(value, np.zeros(d + 1), jac=True, method="BFGS", options={"gtol": 1e-11})
        return np.asarray(found.x)

    def outer(decay: np.ndarray) -> float:
        z = trained(decay)
        margin = ys[second] * (xs[second] @ z[:d] + z[d])
        return float(np.logaddexp(0, -margin).mean() + 1e-2 * decay @ decay)

    found = solution.outer["decay"].numpy()
    lowest = outer(found)  # No decay nearby is better.
    for direction in np.concatenate([np.eye(d), np.random.default_rng(0).normal(size=(6, d))]):
        assert outer(found + 1e-2 * direction) > lowest
        assert outer(found - 1e-2 * direction) > lowest
    np.testing.assert_allclose(solution.inner["w"], trained(found)[:d], atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [lambda v, u: (v["v"] * u["u"].exp()).sum(), lambda v, u: v["v"].sum() + u["u"] @ v["v"]],
    ids=["linear", "bilinear"],
)
def test_an_inner_loss_without_a_minimum_is_told(loss: Any) -> None:
    with pytest.raises(DivergenceError, match="it has no minimum"):
        solve(followed(loss), progress=False)


@pytest.mark.parametrize(
    "loss",
    [
        lambda v, u: -v["v"].square().sum(),
        lambda v, u: v["v"][0].square() - v["v"][1].square(),
        lambda v, u: v["v"].cos().sum(),
    ],
    ids=["cap", "saddle", "cosine"],
)
def test_a_start_at_a_maximum_or_a_saddle_point_is_no_solution(loss: Any) -> None:
    with pytest.raises(NotSolvedError, match="a maximum or a saddle point"):
        solve(followed(near, loss), progress=False)


def test_an_outer_loss_that_is_not_defined_is_told() -> None:
    """Here G is finite everywhere, and has a minimum."""
    given = followed(near, lambda v, u: u["u"].log().sum() + v["v"].sum())
    with torch.no_grad():
        given.outer["u"].fill_(-1.0)
    with pytest.raises(DivergenceError, match="the outer loss is nan, though the inner loss is"):
        solve(given, progress=False)


@pytest.mark.parametrize("saddles", [1, 3])
def test_a_saddle_point_of_many_variables_is_left(saddles: int) -> None:
    """F is zero at minima, and falls along the first entries alone, which random ways miss."""
    given = followed(
        near,
        lambda v, u: (
            v["v"][saddles:].square().sum() + (v["v"][:saddles].square() - 1).square().sum()
        ),
        n=60,
    )
    with torch.no_grad():
        given.outer["u"][saddles:] = 1.0
    solution = solve(given, progress=False)
    assert solution.history[-1]["loss/outer"] < 1e-8
    ones = torch.ones(saddles, dtype=DOUBLE)
    torch.testing.assert_close(solution.outer["u"][:saddles].abs(), ones, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        lambda v, u: 1 / (1 + v["v"][0].square()),
        lambda v, u: (-v["v"][0]).exp() + (v["v"][1] - 3).square(),
    ],
    ids=["rational", "an entry"],
)
def test_an_outer_loss_without_a_minimum_is_never_solved(loss: Any) -> None:
    """Steps become short beside u, which runs away."""
    given = followed(near, loss)
    with torch.no_grad():
        given.outer["u"].fill_(1.0)
    with pytest.raises(NotSolvedError, match="the outer loss still falls beyond u"):
        solve(given, progress=False)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda v, u: (1 - v["v"]).relu().square().sum(), 1.0),
        (lambda v, u: (v["v"] - 3000).square().sum(), 3000.0),
        (lambda v, u: -(-(v["v"] - 3).square() / 4).exp().sum(), 3.0),
    ],
    ids=["a flat bottom", "far away", "flat outside"],
)
def test_flat_or_far_minima_are_solutions(loss: Any, expected: float) -> None:
    found = solve(followed(near, loss), progress=False).outer["u"]
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-5, atol=0)


def test_outer_constraints_that_cannot_be_met_are_told() -> None:
    given = followed(near, outer_equalities=lambda v, u: torch.stack([u["u"][0], u["u"][0] - 1]))
    with pytest.raises(DivergenceError, match="there may be no feasible"):
        solve(given, progress=False)


@pytest.mark.slow
def test_inner_constraints_that_cannot_be_met_are_told() -> None:
    """v_1 is to be at most -1 and at least 1."""
    given = followed(
        near,
        inner_inequalities=lambda v, u: torch.stack([v["v"][0] + 1, 1 - v["v"][0]]),
    )
    with pytest.raises(NotSolvedError, match="there may be no feasible v"):
        solve(given, progress=False)


@pytest.mark.sampled(7)
@pytest.mark.parametrize(
    "strategy", [Implicit(), Penalty(), Unroll(), ValueFunction()], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("where", ["free", "box", "constraint", "float32", "many"])
@pytest.mark.filterwarnings("ignore::fewshot_blo.errors.NotSolvedWarning")  # They are short.
def test_runs_with_nothing_named_resume_bit_for_bit(
    strategy: Strategy, where: str, tmp_path: Path
) -> None:
    if where == "box" and isinstance(strategy, Penalty):
        pytest.skip("the penalty method refuses sets of inner variables")
    sets = {"v": Box(-3.0, 0.75)} if where == "box" else {}
    limits: dict[str, Any] = {}
    dtype = torch.float32 if where == "float32" else DOUBLE
    if where == "constraint":
        limits = {"outer_inequalities": lambda v, u: v["v"][:1] - 0.5}

    def taken(steps: int, **settings: Any) -> Solution:
        n = 201 if where == "many" else 2  # Then outer steps have limited memory.
        curvatures = torch.linspace(1.0, 20.0, n, dtype=dtype)
        zero = torch.zeros(n, dtype=dtype)
        given = PlainProblem(
            {"u": zero.clone()},
            {"v": zero.clone()},
            lambda v, u: curvatures @ (v["v"] - u["u"]).square(),
            lambda v, u: (v["v"] - 1).square().sum() + u["u"].pow(4).sum() / 10,
            **limits,
        )
        return solve(
            given, strategy, steps=steps, tolerance=1e-7, constraints=sets, every=1, **settings
        )

    whole = taken(13)
    taken(5, folder=tmp_path)
    rest = taken(13, folder=tmp_path, resume=True)
    for name in ("outer", "inner"):
        for key, value in getattr(whole, name).items():
            assert torch.equal(value, getattr(rest, name)[key])
    assert rest.history == whole.history[-len(rest.history) :]


def test_a_plateau_that_hides_the_way_down_is_left() -> None:
    """Ridge regression whose second feature has the scale s: at u = 0 the slope of F is s² there.

    F is zero at ``u_1 = ln(3/7)`` and where u_2 is far below ln s².
    """
    scale = torch.tensor([1.0, 1e-4], dtype=DOUBLE)
    target = torch.tensor([0.7, 1.0], dtype=DOUBLE)
    zero = torch.zeros(2, dtype=DOUBLE)
    given = PlainProblem(
        {"u": zero.clone()},
        {"v": zero.clone()},
        lambda v, u: (scale * v["v"] - 1).square().sum() + u["u"].exp() @ v["v"].square(),
        lambda v, u: (scale * v["v"] - target).square().sum(),
    )
    solution = solve(given, constraints={"u": Box(-30.0, 5.0)}, progress=False)
    assert float(solution.history[-1]["loss/outer"]) < 1e-8
    assert float(solution.outer["u"][0]) == pytest.approx(np.log(3 / 7), abs=1e-5)


@pytest.mark.parametrize("high", [1.0, 1e3])
def test_a_corner_of_the_sets_where_the_loss_is_linear(high: float) -> None:
    """F is -u_1 - 2 u_2 plus nothing that is curved."""
    given = followed(near, lambda v, u: -v["v"][0] - 2 * v["v"][1])
    solution = solve(given, constraints={"u": Box(0.0, high)}, progress=False)
    torch.testing.assert_close(solution.outer["u"], torch.full((2,), high, dtype=DOUBLE))


def test_a_start_at_a_corner_that_is_the_solution() -> None:
    given = followed(near, lambda v, u: v["v"].sum())
    solution = solve(given, constraints={"u": Box(0.0, 1.0)}, progress=False)
    torch.testing.assert_close(solution.outer["u"], torch.zeros(2, dtype=DOUBLE), atol=1e-8, rtol=0)


def test_an_outer_loss_that_falls_faster_than_the_first_penalty_holds_it() -> None:
    """-50 |v|² under ``|u|² <= 4``: γ starts at 10, and the constraint bends F by less than 50."""
    given = followed(
        near,
        lambda v, u: -50 * v["v"].square().sum() - v["v"][0],
        outer_inequalities=lambda v, u: (u["u"].square().sum() - 4)[None],
    )
    solution = solve(given, progress=False)
    expected = torch.tensor([2.0, 0.0], dtype=DOUBLE)
    torch.testing.assert_close(solution.outer["u"], expected, atol=1e-3, rtol=0)
