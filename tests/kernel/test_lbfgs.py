"""The rule of inner problems that are solved to a tolerance: quasi-Newton steps of each task."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from fewshot_blo.bilevel import TaskLoss, TaskParams
from fewshot_blo.kernel import InnerSteps, adapt
from fewshot_blo.kernel.lbfgs import LBFGS
from fewshot_blo.kernel.rules import AdGD, UpdateRule

DOUBLE = torch.float64


def quadratic(n: int, condition: float, tasks: int = 2) -> tuple[TaskLoss, Tensor]:
    """Losses with curvatures from 1 to the condition along random axes, and their minimisers."""
    generator = torch.Generator().manual_seed(n)
    curvatures = torch.logspace(0, math.log10(condition), n, dtype=DOUBLE)
    axes = torch.linalg.qr(torch.randn(tasks, n, n, generator=generator, dtype=DOUBLE))[0]
    hessian = axes * curvatures @ axes.mT
    centre = torch.randn(tasks, n, generator=generator, dtype=DOUBLE)

    def loss(v: TaskParams) -> Tensor:
        moved = (v["v"] - centre)[..., None]
        twice: Tensor = moved.mT @ hessian @ moved
        return twice[:, 0, 0] / 2

    return loss, centre


def one_of(loss: TaskLoss, t: int, v: TaskParams) -> Tensor:
    return loss({"v": v["v"].expand(3, -1)})[t : t + 1]


def directions_in_plain_numpy(points: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """BFGS's formula for the inverse Hessian, pair by pair, from ``γ I`` of the last pair."""
    pairs = list(zip(np.diff(points, axis=0), np.diff(slopes, axis=0), strict=True))
    s, y = pairs[-1]
    h = (s @ y) / (y @ y) * np.eye(len(s))
    for s, y in pairs:
        left = np.eye(len(s)) - np.outer(s, y) / (s @ y)
        h = left @ h @ left.T + np.outer(s, s) / (s @ y)
    return np.asarray(-h @ slopes[-1])


def test_steps_are_those_of_the_formula_of_bfgs() -> None:
    loss, centre = quadratic(5, 20.0, tasks=1)
    points: list[Tensor] = []
    start = torch.zeros_like(centre)
    adapt(
        loss,
        {"v": start},
        InnerSteps(7, LBFGS()),
        visit=lambda number, v: points.append(v["v"].detach()[0]),
    )
    path = torch.stack([start[0], *points])
    leaves = path.clone().requires_grad_()
    losses = torch.cat([loss({"v": x[None]}) for x in leaves])
    (slopes,) = torch.autograd.grad(losses.sum(), leaves)
    x, g = path.numpy(), slopes.numpy()
    checked = 0
    for k in range(2, 7):
        expected = directions_in_plain_numpy(x[: k + 1], g[: k + 1])
        if (g[k + 1] @ expected) <= 0.5 * abs(g[k] @ expected):  # Else it was shortened after.
            np.testing.assert_allclose(x[k + 1] - x[k], expected, rtol=1e-8)
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize(
    ("n", "condition", "most"), [(6, 1e3, 60), (6, 1e6, 100), (60, 1e3, 300), (150, 1e2, 250)]
)
def test_ill_conditioned_losses_are_solved(n: int, condition: float, most: int) -> None:
    loss, centre = quadratic(n, condition)
    steps = 0

    def count(number: int, v: TaskParams) -> None:
        nonlocal steps
        steps = number + 1

    found = adapt(loss, {"v": torch.zeros_like(centre)}, InnerSteps(), visit=count)["v"]
    torch.testing.assert_close(found, centre, atol=1e-6, rtol=0)
    assert steps <= most


def test_each_task_takes_its_own_steps() -> None:
    loss, centre = quadratic(4, 100.0, tasks=3)
    together = adapt(loss, {"v": torch.zeros_like(centre)}, InnerSteps(12, LBFGS()))["v"]
    for t in range(3):
        alone = adapt(
            partial(one_of, loss, t),
            {"v": torch.zeros(1, 4, dtype=DOUBLE)},
            InnerSteps(12, LBFGS()),
        )["v"]
        torch.testing.assert_close(together[t : t + 1], alone, rtol=1e-6, atol=1e-9)


def test_logistic_regression_against_scipy() -> None:
    """Features of scales from 0.01 to 10, in parameters of two names."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(80, 8, generator=generator, dtype=DOUBLE) * torch.logspace(-2, 1, 8).double()
    y = torch.randn(80, generator=generator, dtype=DOUBLE).sign()

    def loss(v: TaskParams) -> Tensor:
        margin = y * (v["w"] @ x.T + v["b"])
        return torch.nn.functional.softplus(-margin).mean(1) + 1e-3 * v["w"].square().sum(1)

    start = {"w": torch.zeros(1, 8, dtype=DOUBLE), "b": torch.zeros(1, 1, dtype=DOUBLE)}
    found = adapt(loss, start, InnerSteps())
    xs, ys = x.numpy(), y.numpy()

    def value(z: np.ndarray) -> float:
        return float(np.logaddexp(0, -ys * (xs @ z[:8] + z[8])).mean() + 1e-3 * z[:8] @ z[:8])

    def slope(z: np.ndarray) -> np.ndarray:
        share = -ys / (1 + np.exp(ys * (xs @ z[:8] + z[8]))) / len(ys)
        return np.append(xs.T @ share + 2e-3 * z[:8], share.sum())

    known = minimize(value, np.zeros(9), jac=slope, method="BFGS", options={"gtol": 1e-10}).x
    np.testing.assert_allclose(torch.cat([found["w"], found["b"]], 1)[0], known, atol=1e-6)


def test_a_step_too_far_is_shortened() -> None:
    """The loss is not defined from 1 on, and the start is far from there in its scale."""

    def barrier(v: TaskParams) -> Tensor:
        return (v["v"] - 3).square().sum(1) - 1e-3 * (1 - v["v"]).log().sum(1)

    found = adapt(barrier, {"v": torch.full((2, 3), -50.0, dtype=DOUBLE)}, InnerSteps())["v"]
    # 2 (v - 3) + 1e-3 / (1 - v) = 0.
    exact = (4 - math.sqrt(16 - 4 * (3 - 0.5e-3))) / 2
    torch.testing.assert_close(found, torch.full_like(found, exact), atol=1e-8, rtol=0)


def test_single_precision_ends() -> None:
    loss, centre = quadratic(6, 1e3)
    taken: list[int] = []
    found = adapt(
        lambda v: loss({"v": v["v"].double()}).float(),
        {"v": torch.zeros(2, 6)},
        InnerSteps(),
        visit=lambda number, v: taken.append(number),
    )["v"]
    torch.testing.assert_close(found.double(), centre, atol=1e-4, rtol=0)
    assert len(taken) < 200


def test_a_loss_without_a_minimum_ends() -> None:
    taken: list[int] = []
    adapt(
        lambda v: v["v"].sum(1),
        {"v": torch.zeros(1, 2, dtype=DOUBLE)},
        InnerSteps(),
        visit=lambda number, v: taken.append(number),
    )
    assert len(taken) < 500


def test_a_direction_that_a_kink_blocks_is_given_up() -> None:
    """``5 |v_1 + v_2 - 1|`` and a bowl of condition 100, least on the line."""
    h = torch.tensor([1.0, 100.0], dtype=DOUBLE)
    centre = torch.tensor([3.0, 1.0], dtype=DOUBLE)

    def loss(v: TaskParams) -> Tensor:
        bowl = 0.5 * (h * (v["v"] - centre).square()).sum(1)
        return 5 * (v["v"].sum(1) - 1).abs() + bowl

    found = adapt(loss, {"v": torch.tensor([[-4.0, 2.0]], dtype=DOUBLE)}, InnerSteps())["v"][0]
    multiplier = float((centre.sum() - 1) / (1 / h).sum())
    assert abs(multiplier) < 5
    torch.testing.assert_close(found, centre - multiplier / h, atol=1e-2, rtol=0)


@pytest.mark.parametrize("rule", [LBFGS(), AdGD()])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-5])
def test_a_first_step_that_is_short_by_choice_solves_nothing(
    rule: UpdateRule, tolerance: float
) -> None:
    """Nor do those that grow where no curvature is met: here from a plateau's edge."""
    centre = torch.tensor([[3.0, -1.0], [0.0, 2.0]], dtype=DOUBLE)

    def bowl(v: TaskParams) -> Tensor:
        return (v["v"] - centre).square().sum(1)

    def slope(v: TaskParams) -> Tensor:
        """Linear down to 1, and a bowl from there."""
        x = v["v"][:, 0]
        return torch.where(x < 1, 1 - 2 * x, (x - 2).square() - 2)

    start = {"v": torch.zeros(2, 2, dtype=DOUBLE)}
    steps = InnerSteps(rule=rule, tolerance=tolerance)
    assert (adapt(bowl, start, steps)["v"] - centre).abs().max() < 10 * tolerance
    assert (adapt(slope, start, steps)["v"][:, 0] - 2).abs().max() < 10 * tolerance


@pytest.mark.parametrize("start", [1.2, 3.0, 40.0, -1e4])
def test_a_minimum_in_a_valley_with_flat_sides_is_not_passed(start: float) -> None:
    """``log(1 + 9 |v - 1|²)`` is concave but near its minimum, and its slope vanishes afar."""
    found = adapt(
        lambda v: (1 + 9 * (v["v"] - 1).square().sum(1)).log(),
        {"v": torch.tensor([[start, 0.5]], dtype=DOUBLE)},
        InnerSteps(),
    )
    torch.testing.assert_close(found["v"], torch.ones(1, 2, dtype=DOUBLE))
