"""Counts of Hessian products are those that the formulas have."""

from __future__ import annotations

import pytest
import torch

from fewshot_blo.hypergrad import BOME, Implicit, Penalty, Strategy, Unroll, ValueFunction
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, Neumann, OneStep
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.products import hessian_products


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
        (Unroll(InnerSteps(4, SGD(0.1))), 4),
        (Unroll(InnerSteps(7, Adam(0.1))), 7),
        (Unroll(InnerSteps(4, SGD(0.1)), truncate=1), 1),
        (Unroll(InnerSteps(4, SGD(0.1)), first_order=True), 0),
        (Implicit(InnerSteps(4, SGD(0.1)), ConjugateGradient(2)), 2 + 1),  # The last is G_uv q.
        (Implicit(InnerSteps(4, SGD(0.1)), Neumann(2, 0.1)), 2 + 1),
        (Implicit(InnerSteps(4, SGD(0.1)), OneStep(0.1)), 1),
        (Penalty(InnerSteps(4, SGD(0.01)), rho=1.0), 4 + 1),  # Over v and u at once, at the end.
        (ValueFunction(InnerSteps(4, SGD(0.1)), 4), 0),
        (BOME(InnerSteps(4, SGD(0.1)), 4), 0),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else None,
)
def test_counts(strategy: Strategy, expected: int) -> None:
    assert hessian_products(problem(), strategy) == expected
