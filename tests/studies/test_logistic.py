"""Regularisation of logistic regression, against automatic and finite differences and SciPy."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import SABA, Implicit, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.driver import solve
from fewshot_blo.studies import LogisticRegularisation
from fewshot_blo.studies.vectors.logistic import GAP, INNER, RANKED

TINY = LogisticRegularisation(train=200, validation=150, features=4, useful=2, batch=0, decay=0.1)


def random_u() -> Any:
    return np.random.default_rng(0).uniform(-4, -1, 4)


def test_losses_are_those_of_the_definition() -> None:
    """``log(1 + exp(-y x'v))`` and the decays, by logarithms of plain sums."""
    problem = TINY.problem()
    train, validation = (part.numpy() for part in TINY.signed)
    u, v = random_u(), np.random.default_rng(1).normal(size=4)
    rows, outer = slice(3, 90), {"log decay": torch.tensor(u)}
    inner = {"weight": torch.tensor(v)}
    expected = np.log(1 + np.exp(-train[rows] @ v)).mean() + (np.exp(u) * v**2).sum() / 2
    assert float(problem.inner_loss(inner, outer, rows)) == pytest.approx(expected, rel=1e-12)  # type: ignore[call-arg]
    expected = np.log(1 + np.exp(-validation[rows] @ v)).mean()
    assert float(problem.outer_loss(inner, outer, rows)) == pytest.approx(expected, rel=1e-12)  # type: ignore[call-arg]


def test_gradient_of_the_value_is_that_of_finite_differences() -> None:
    u = random_u()
    gradient = TINY.value(u)[1]
    for j, unit in enumerate(np.eye(4)):
        step = 1e-5 * unit
        slope = (TINY.value(u + step)[0] - TINY.value(u - step)[0]) / 2e-5
        assert gradient[j] == pytest.approx(slope, rel=1e-6, abs=1e-10)


def test_hypergradients_of_the_toolkit_are_those_of_numpy() -> None:
    """At the minimiser, where the system is solved exactly, and of long unrolling."""
    problem, u = TINY.problem(), random_u()
    with torch.no_grad():
        problem.outer["log decay"].copy_(torch.tensor(u))
    _, expected, v = TINY.value(u)
    many = InnerSteps(800, SGD(0.8))
    for strategy in (Implicit(many, ConjugateGradient(8)), Unroll(many)):
        typed: Strategy = strategy
        step = typed.hypergradient(problem.at(0), typed.init())
        np.testing.assert_allclose(step.inner["weight"][0].numpy(), v, rtol=1e-10)
        np.testing.assert_allclose(step.gradient["log decay"].numpy(), expected, rtol=1e-9)


def test_optimum_is_the_least_value() -> None:
    """SciPy's SLSQP on the value alone, whose gradient it takes by differences, from elsewhere."""
    least, at = TINY.optimum
    bounds = [(math.log(TINY.least), math.log(TINY.most))] * 4
    found = [
        minimize(
            lambda u: 100 * TINY.value(u)[0], start, method="SLSQP", bounds=bounds, tol=1e-12
        ).fun
        / 100
        for start in (random_u(), np.full(4, -8.0), np.zeros(4))
    ]
    assert least == pytest.approx(min(found), abs=1e-8)
    assert least <= min(found) + 1e-12
    assert ((bounds[0][0] <= at) & (at <= bounds[0][1])).all()


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [False, True], ids=["conjugate gradients", "SABA, blocks"])
def test_strategies_come_near_the_least_value(blocks: bool) -> None:
    exact: Strategy = Implicit(InnerSteps(10, SGD(0.8)), ConjugateGradient(4))
    strategy = SABA(InnerSteps(1, SGD(0.3)), 0.3) if blocks else exact
    study = replace(TINY, batch=50) if blocks else TINY
    found = solve(
        study.problem(),
        strategy,
        partial(torch.optim.SGD, lr=10.0 if blocks else 30.0),
        steps=4000 if blocks else 600,
        every=500,
        constraints=study.constraints(),
        observe=study.observe(),
        progress=False,
    )
    figures = study.measure(found.outer, found.inner)[""]
    start = study.baselines()["start"][GAP]
    assert -1e-12 < figures[GAP] < 0.03 * start
    assert figures[INNER] < 1e-6


def test_baselines_stand_in_order() -> None:
    rows = TINY.baselines()
    assert rows["optimum"][GAP] == 0
    assert 0 < rows["best decay of a grid"][GAP] <= rows["start"][GAP]


def test_ranks_of_useless_features() -> None:
    useless = (TINY.truth() == 0).double()
    assert TINY._ranked(useless) == 100
    assert TINY._ranked(-useless) == 0
    assert TINY._ranked(torch.zeros(4)) == 50
    assert RANKED in TINY.baselines()["optimum"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"decay": 2.0}, "0 < least <= decay <= most"),
        ({"useful": 22}, "useful is 22"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        LogisticRegularisation(**settings)
