"""Reptile moves the start to where the inner steps end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Reptile, outer_step
from fewshot_blo.kernel import SGD, InnerSteps

TASKS, SIZE = 3, 4


def problem(targets: Tensor, queries: Tensor, theta: Tensor) -> Bilevel:
    """``G_t = |v - a_t|²/2``, ``F_t = |v - b_t|²/2`` from ``v = θ``."""

    def distance(to: Tensor, v: TaskParams) -> Tensor:
        return 0.5 * (v["v"] - to).square().sum(1)

    return Bilevel(
        {"theta": theta},
        {"v": theta.expand(TASKS, SIZE)},
        lambda v: distance(targets, v),
        lambda v: distance(queries, v),
    )


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor]:
    targets, queries = torch.randn(2, TASKS, SIZE, dtype=torch.float64)
    return targets, queries, torch.randn(SIZE, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_equals_the_closed_form(tensors: tuple[Tensor, Tensor, Tensor], weight: float) -> None:
    targets, queries, theta = tensors
    strategy = Reptile(InnerSteps(6, SGD(0.3)), weight)
    step = strategy.hypergradient(problem(*tensors), strategy.init())
    # Both losses have curvature 1: each step shrinks the distance to their weighted minimum.
    minimum = (1 - weight) * targets + weight * queries
    end = minimum + (1 - 0.3) ** 6 * (theta.detach() - minimum)
    torch.testing.assert_close(step.inner["v"], end)
    torch.testing.assert_close(step.gradient["theta"], (theta.detach() - end).mean(0))


def test_a_whole_step_goes_to_the_mean_of_the_ends(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    theta = tensors[2]
    step, _ = outer_step(Reptile(InnerSteps(5)), problem(*tensors), Reptile(InnerSteps(5)).init())
    moved = theta.detach() - step.gradient["theta"]
    torch.testing.assert_close(moved, step.inner["v"].mean(0))


def test_a_warm_start_is_an_error(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    _, state = outer_step(Reptile(InnerSteps(5)), problem(*tensors), Reptile(InnerSteps(5)).init())
    with pytest.raises(ConfigurationError, match="use a cold start"):
        outer_step(Reptile(InnerSteps(5)), problem(*tensors), state)


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_weights_out_of_range(weight: float) -> None:
    with pytest.raises(ConfigurationError, match=f"query_weight is {weight}"):
        Reptile(query_weight=weight)
