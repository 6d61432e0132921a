"""The support vector machine: optimal by its duality gap, its derivative by finite differences."""

from __future__ import annotations

import pytest
import torch
from oracles import normal
from torch import Tensor

from fewshot_blo.heads import MaxMarginHead
from fewshot_blo.heads.head import SupportSet
from fewshot_blo.objectives.cross_entropy import one_hot

LEARNED: dict[str, Tensor] = {}


def support(way: int, shot: int, features: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Features around class centres, labels and classes of 3 tasks."""
    centres = normal(3, way, features).repeat_interleave(shot, 1)
    x = centres + spread * normal(3, way * shot, features, seed=1)
    labels = torch.arange(way).repeat_interleave(shot).expand(3, -1)
    return x, labels, torch.arange(way).expand(3, -1)


def dual_bound(weight: Tensor, x: Tensor, labels: Tensor, c: float) -> Tensor:
    """A lower bound of the objective, ``[T]``: the dual's value at the best feasible α near W.

    ``max over α ≤ C Y with rows that sum to zero`` of ``<Y, α> - |α'x|²/2``; by Frank-Wolfe from W,
    for the best vertex of a row follows from the scores.
    """
    way = weight.shape[1]
    y = one_hot(labels, way, x.dtype)
    alpha = torch.zeros_like(y)
    for _ in range(20000):
        w = alpha.transpose(1, 2) @ x
        slope = y - x @ w.transpose(1, 2)
        # Vertices of a row: C at its own class and -C at another, or zero.
        worst = slope.argmin(2)
        vertex = c * (y - torch.nn.functional.one_hot(worst, way))
        direction = vertex - alpha
        gain = (slope * direction).sum((1, 2))
        moved = direction.transpose(1, 2) @ x
        length = (gain / moved.square().sum((1, 2)).clamp(min=1e-12)).clamp(0, 1)
        alpha = alpha + length.reshape(-1, 1, 1) * direction
    w = alpha.transpose(1, 2) @ x
    return (y * alpha).sum((1, 2)) - 0.5 * w.square().sum((1, 2))


@pytest.mark.parametrize(
    ("way", "shot", "features", "spread", "c"),
    [(3, 1, 5, 0.1, 1.0), (3, 4, 5, 1.5, 0.3), (5, 5, 8, 1.0, 0.05), (2, 6, 2, 2.0, 5.0)],
)
def test_is_optimal(way: int, shot: int, features: int, spread: float, c: float) -> None:
    x, labels, classes = support(way, shot, features, spread)
    head, task = MaxMarginHead(c=c), SupportSet(x, labels, classes)
    params = head.from_support(task, LEARNED)
    objective = head.loss(params, task, LEARNED)
    bound = dual_bound(params["head.weight"], x, labels, c)
    # Weak duality: no W has an objective below the bound.
    assert (objective >= bound - 1e-9 * objective).all()
    assert ((objective - bound) / objective).max() < 2e-3
    # And no W near by has a lower one.
    for seed in range(20):
        for size in (1e-2, 1e-4):
            moved = params["head.weight"] + size * normal(*params["head.weight"].shape, seed=seed)
            other = head.loss({"head.weight": moved}, task, LEARNED)
            assert (other >= objective * (1 - 1e-5)).all()


@pytest.mark.parametrize(("shot", "spread", "c"), [(1, 0.1, 1.0), (3, 1.5, 0.3), (3, 1.0, 0.02)])
def test_derivative_by_finite_differences(shot: int, spread: float, c: float) -> None:
    x, labels, classes = support(3, shot, 5, spread)
    head, direction = MaxMarginHead(c=c), normal(*x.shape, seed=5)
    probe = normal(3, 3, 5, seed=6)

    def value(moved: Tensor) -> Tensor:
        weight = head.from_support(SupportSet(moved, labels, classes), LEARNED)["head.weight"]
        return (weight * probe).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    step = 1e-6
    difference = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-7)


def test_padding_changes_nothing() -> None:
    x, labels, classes = support(3, 2, 5, 1.0)
    head = MaxMarginHead(c=0.5)
    expected = head.from_support(SupportSet(x, labels, classes), LEARNED)["head.weight"]
    padded_x = torch.cat([x, normal(3, 2, 5, seed=9)], 1)
    padded_labels = torch.cat([labels, torch.full((3, 2), -1)], 1)
    padded_classes = torch.cat([classes, torch.full((3, 1), -1)], 1)
    task = SupportSet(padded_x, padded_labels, padded_classes)
    padded = head.from_support(task, LEARNED)["head.weight"]
    torch.testing.assert_close(padded[:, :3], expected, rtol=1e-5, atol=1e-6)
    assert (padded[:, 3] == 0).all()


def test_repeated_images_are_no_singular_system() -> None:
    x, labels, classes = support(3, 2, 5, 0.0)
    task = SupportSet(x.float(), labels, classes)
    weight = MaxMarginHead().from_support(task, LEARNED)["head.weight"]
    assert weight.isfinite().all()
