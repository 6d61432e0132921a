"""Counts of gradients and Hessian products are those that the formulas have."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fewshot_blo.hypergrad import (
    BOME,
    SABA,
    SOBA,
    AmIGO,
    FiniteDifference,
    Implicit,
    MoreauEnvelope,
    Penalty,
    StocBiO,
    Strategy,
    Unroll,
    ValueFunction,
)
from fewshot_blo.hypergrad.linear_solve import MINRES, ConjugateGradient, Neumann, Nystrom, OneStep
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.products import Passes, count_passes


def problem() -> PlainProblem:
    return PlainProblem(
        {"u": torch.ones(3)},
        {"v": torch.ones(3), "w": torch.zeros(2)},
        lambda v, u: (
            (v["v"] - u["u"]).square().sum()
            + (v["w"] - v["v"][:2]).exp().sum()
            + v["w"].square().sum()
        ),
        lambda v, u: (v["v"] - 2).square().sum() + u["u"].square().sum(),
    )


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Unroll(InnerSteps(4, SGD(0.1))), (5, 4)),
        (Unroll(InnerSteps(7, Adam(0.1))), (8 + 7, 7)),  # Recomputed where more than 5.
        (Unroll(InnerSteps(4, SGD(0.1)), truncate=1), (5, 1)),
        (Unroll(InnerSteps(4, SGD(0.1)), first_order=True), (5, 0)),
        (Implicit(InnerSteps(4, SGD(0.1)), ConjugateGradient(2)), (6, 2 + 1)),  # The last: G_uv q.
        (Implicit(InnerSteps(4, SGD(0.1)), Neumann(2, 0.1)), (6, 2 + 1)),
        (Implicit(InnerSteps(4, SGD(0.1)), MINRES(2)), (6, 2 + 1)),
        (Implicit(InnerSteps(4, SGD(0.1)), Nystrom(3)), (6, 3 + 1)),
        (Implicit(InnerSteps(4, SGD(0.1)), OneStep(0.1)), (6, 1)),
        # Over v and u at once, at the end.
        (Penalty(InnerSteps(4, SGD(0.01)), rho=1.0), (2 * 4 + 2, 4 + 1)),
        (ValueFunction(InnerSteps(4, SGD(0.1)), 4, lam=1.0), (3 * 4 + 3, 0)),
        (BOME(InnerSteps(4, SGD(0.1)), 3), (4 * 4 + 3 + 2 + 3, 0)),
        # Two a product and two for G_uv q.
        (FiniteDifference(InnerSteps(4, SGD(0.1)), ConjugateGradient(2)), (5 + 2 * 2 + 2, 0)),
        (MoreauEnvelope(), (2 + 1 + 3, 0)),  # v, θ and du.
        (SOBA(), (2, 1)),  # Both products in one pass.
        (SABA(), (2, 1)),
        (AmIGO(InnerSteps(4, SGD(0.1)), 3), (6, 3 + 1)),
        (StocBiO(InnerSteps(4, SGD(0.1)), 3), (6, 3 + 1)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, tuple) else "",
)
def test_counts(strategy: Strategy, expected: tuple[int, int]) -> None:
    assert count_passes(problem(), strategy) == Passes(*expected)


@pytest.mark.parametrize(
    "strategy", [AmIGO(InnerSteps(4, SGD(0.1)), 3), StocBiO(InnerSteps(4, SGD(0.1)), 3)]
)
def test_another_batch_for_every_product_takes_another_gradient(strategy: Strategy) -> None:
    whole = problem()
    blocks = dataclasses.replace(
        whole,
        inner_loss=lambda v, u, factor: factor * whole.inner_loss(v, u),  # type: ignore[call-arg]
        inner_blocks=[0.9, 1.1],
    )
    assert count_passes(blocks, strategy) == Passes(6 + 3, 3 + 1)
