"""First-order penalties against closed forms and a plain loop."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from oracles import Quadratic
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import BOME, ValueFunction, outer_step
from fewshot_blo.hypergrad.strategy import Strategy
from fewshot_blo.kernel import SGD, InnerSteps


def gradient(strategy: Strategy, quadratic: Quadratic) -> Tensor:
    return strategy.hypergradient(quadratic.bilevel(), strategy.init()).gradient["u"]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("lam", [0.1, 1.0, 50.0])
def test_equals_the_closed_form_at_the_minimisers(lam: float, *, continued: bool) -> None:
    quadratic = Quadratic.random()
    strategy = ValueFunction(InnerSteps(1500, SGD(0.2)), 1500, lam=lam, continued=continued)
    identity = torch.eye(quadratic.a.shape[1], dtype=torch.float64)
    linear = quadratic.b @ quadratic.u.detach() + quadratic.c
    v = torch.linalg.solve(identity + lam * quadratic.a, quadratic.d + lam * linear)
    # G_u(v) - G_u(z) = -B'(v - z), so that λ (z - v) takes the place of q.
    expected = quadratic.hypergradient(v, lam * (quadratic.minimiser() - v))
    step = strategy.hypergradient(quadratic.bilevel(), strategy.init())
    torch.testing.assert_close(quadratic.join(step.inner), v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(step.gradient["u"], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_the_error_falls_as_one_over_lambda() -> None:
    quadratic = Quadratic.random()
    exact = quadratic.exact()
    errors = [
        relative_error(
            gradient(ValueFunction(InnerSteps(3000, SGD(0.2)), 3000, lam=lam), quadratic), exact
        )
        for lam in (100.0, 1000.0)
    ]
    assert errors[0] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


def test_without_weight_it_is_the_gradient_of_the_outer_loss_alone() -> None:
    quadratic = Quadratic.random()
    strategy = ValueFunction(InnerSteps(500, SGD(0.5)), 1, lam=0.0)
    expected = quadratic.r * quadratic.u.detach()
    torch.testing.assert_close(gradient(strategy, quadratic), expected)


def test_lambda_grows_to_its_largest() -> None:
    strategy = ValueFunction(InnerSteps(1), 1, lam=1.0, lam_growth=2.0, lam_max=4.5)
    state = strategy.init()
    values = []
    for _ in range(4):
        _, state = outer_step(strategy, Quadratic.random().bilevel(), state.cold())
        values.append(float(state.lam))
    assert values == [3.0, 4.5, 4.5, 4.5]


@pytest.mark.parametrize(
    ("strategy", "settings", "words"),
    [
        (ValueFunction, {"value_steps": -1}, "value_steps is -1"),
        (ValueFunction, {"lam": 5.0, "lam_max": 1.0}, r"lam_max is 1\.0 and lam is 5\.0"),
        (BOME, {"eta": -0.5}, r"eta is -0\.5"),
    ],
)
def test_settings_out_of_range(strategy: Any, settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        strategy(**settings)


def plain_bome(quadratic: Quadratic, strategy: BOME, task: int) -> Tensor:
    """The paper's updates for one task, with gradients written out; the term of u from v and z."""
    a, b, d = quadratic.a[task], quadratic.b[task], quadratic.d[task]
    linear = b @ quadratic.u.detach() + quadratic.c[task]
    v = torch.zeros_like(d)

    def multiplier(v: Tensor) -> Tensor:
        q_v = a @ v - linear
        return (strategy.eta - (v - d) @ q_v / (q_v @ q_v)).clamp(min=0)

    assert isinstance(strategy.inner.rule, SGD)
    size = strategy.inner.rule.step_size
    for _ in range(strategy.inner.most):
        v = v - size * ((v - d) + multiplier(v) * (a @ v - linear))
    z = v
    assert strategy.value_steps is not None
    for _ in range(strategy.value_steps):
        z = z - size * (a @ z - linear)
    return quadratic.r * quadratic.u.detach() - multiplier(v) * (b.T @ (v - z))


@pytest.mark.parametrize("eta", [0.1, 0.9])
def test_bome_equals_a_plain_loop(eta: float) -> None:
    quadratic = Quadratic.random()
    strategy = BOME(InnerSteps(7, SGD(0.05)), 3, eta)
    expected = torch.stack([plain_bome(quadratic, strategy, t) for t in range(3)]).mean(0)
    torch.testing.assert_close(gradient(strategy, quadratic), expected, rtol=1e-10, atol=1e-10)


def test_bome_weighs_only_what_is_needed() -> None:
    """Where descending on F lowers G as fast as asked for, the multiplier is zero."""
    quadratic = Quadratic.random()
    aligned = dataclasses.replace(quadratic, d=quadratic.minimiser())
    strategy = BOME(InnerSteps(1, SGD(0.01)), 2000, eta=1e-3)
    step = strategy.hypergradient(aligned.bilevel(), strategy.init())
    expected = aligned.r * aligned.u.detach()
    torch.testing.assert_close(step.gradient["u"], expected, rtol=1e-10, atol=1e-10)
