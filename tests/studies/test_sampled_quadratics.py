"""Every strategy against the exact value of quadratics of finite data."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import (
    BOME,
    SABA,
    SOBA,
    AmIGO,
    Implicit,
    Penalty,
    StocBiO,
    Strategy,
    Unroll,
    ValueFunction,
)
from fewshot_blo.hypergrad.linear_solve import MINRES, ConjugateGradient, Neumann, Nystrom
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.driver import solve
from fewshot_blo.studies import SampledQuadratics
from fewshot_blo.studies.vectors.sampled_quadratics import GAP

SMALL = SampledQuadratics(samples=128, inner=12, outer=4, batch=0)
STEP = SGD(0.5)
TEN = InnerSteps(10, STEP)
ONE = InnerSteps(1, STEP)
# Outer steps, and the largest gap that is left of 1 at the start: more where a setting bounds it.
STRATEGIES: dict[str, tuple[Strategy, int, float]] = {
    "SOBA": (SOBA(ONE, 0.5), 1000, 1e-8),
    "SABA": (SABA(ONE, 0.5), 1000, 1e-8),
    "AmIGO": (AmIGO(TEN, 10, 0.5), 120, 1e-5),
    "StocBiO": (StocBiO(TEN, 40, 0.5), 80, 1e-2),
    "conjugate gradients": (Implicit(TEN, ConjugateGradient(12)), 120, 1e-5),
    "MINRES": (Implicit(TEN, MINRES(12)), 120, 1e-5),
    "Nyström": (Implicit(TEN, Nystrom(12, 1e-5)), 120, 1e-5),
    "Neumann": (Implicit(TEN, Neumann(40, 0.5)), 80, 1e-2),
    "unrolling": (Unroll(InnerSteps(40, STEP), recompute=False), 80, 1e-2),
    "penalty": (Penalty(InnerSteps(20, SGD(3e-3)), rho=100.0, lam=0.0, epsilon=0.0), 120, 0.02),
    "value function": (ValueFunction(InnerSteps(30, STEP), 30, lam=100.0), 120, 0.02),
    "BOME": (BOME(TEN, 10), 80, 0.5),
}


def gap_after(study: SampledQuadratics, strategy: Strategy, steps: int, rate: float) -> float:
    """Of the gap at the start."""
    optimizer: Any = partial(torch.optim.SGD, lr=rate)
    found = solve(study.problem(), strategy, optimizer, steps=steps, start="warm", progress=False)
    gap = study.measure(found.outer, found.inner)[""][GAP]
    return gap / study.baselines()["u = 0"][GAP]


def test_closed_forms_are_those_of_the_losses() -> None:
    """``∇h`` by automatic differentiation of F at the solution of a dense system."""
    u = torch.randn(4, dtype=torch.float64).requires_grad_()
    g, f = SMALL.losses
    v = SMALL.response(u)
    everything = slice(0, 128)
    slope = torch.autograd.functional.jacobian(lambda v: g(v, u.detach(), everything), v.detach())
    assert float(slope.abs().max()) < 1e-12
    (gradient,) = torch.autograd.grad(f(v, u, everything), u)
    curvature, constant = SMALL._value
    torch.testing.assert_close(gradient, (curvature @ u + constant).detach())
    at_solution = float(f(SMALL.response(SMALL.solution), SMALL.solution, everything))
    gap = float(f(v, u, everything).detach()) - at_solution
    assert SMALL._figures(u.detach())[GAP] == pytest.approx(gap)


@pytest.mark.parametrize("seed", range(3))
def test_the_value_has_a_minimum(seed: int) -> None:
    curvature, _ = SampledQuadratics(seed=seed)._value
    assert float(torch.linalg.eigvalsh(curvature).min()) > 1e-2


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("strategy", "steps", "bound"), STRATEGIES.values(), ids=list(STRATEGIES))
def test_every_strategy_comes_near_the_exact_value(
    strategy: Strategy, steps: int, bound: float
) -> None:
    assert gap_after(SMALL, strategy, steps, 0.5) < bound


@pytest.mark.slow
def test_of_blocks_saba_alone_reaches_the_exact_value() -> None:
    study = SampledQuadratics(samples=128, inner=12, outer=4, batch=16)
    one = InnerSteps(1, SGD(0.1))
    assert gap_after(study, SABA(one, 0.1), 2000, 0.1) < 1e-9
    assert 1e-4 < gap_after(study, SOBA(one, 0.1), 2000, 0.1) < 1


@pytest.mark.parametrize("settings", [{"mu": 2.0}, {"coupling": 0.2}])
def test_the_value_must_have_a_minimum(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="or the value may have no minimum"):
        SampledQuadratics(**settings)  # type: ignore[arg-type]
