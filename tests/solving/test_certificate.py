"""What a solution says of itself, and what is not taken for one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import (
    ConfigurationError,
    DivergenceError,
    NotSolvedError,
    NotSolvedWarning,
    StructuralZeroError,
)
from fewshot_blo.hypergrad import (
    BOME,
    SABA,
    SOBA,
    AmIGO,
    Implicit,
    Penalty,
    Reptile,
    StocBiO,
    Strategy,
    Unroll,
    ValueFunction,
)
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.driver import solve
from fewshot_blo.solving.problem import PlainProblem

SOLUTION = 1 / 1.1


def scalar(c: float) -> PlainProblem:
    """G = c/2 (v - u)² and F = (v - 1)² + u²/10."""
    zero = torch.zeros((), dtype=torch.float64)
    return PlainProblem(
        {"u": zero.clone()},
        {"v": zero.clone()},
        lambda v, u: c / 2 * (v["v"] - u["u"]).square(),
        lambda v, u: (v["v"] - 1).square() + u["u"].square() / 10,
    )


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(
    "strategy",
    [None, Unroll(), Implicit(), Penalty(), ValueFunction(), BOME()],
    ids=lambda x: type(x).__name__,
)
def test_solved_without_a_setting_or_an_error(strategy: Strategy | None, c: float) -> None:
    try:
        solution = solve(scalar(c), strategy, progress=False)
    except NotSolvedError:
        return
    assert abs(float(solution.outer["u"]) - SOLUTION) <= 1e-3
    assert solution.converged
    assert solution.certificate is not None
    assert solution.certificate.inner_distance < 3e-4
    assert solution.history[-1]["certificate/inner_distance"] < 3e-4


def test_most_strategies_solve_it() -> None:
    for strategy in (Unroll(), Implicit(), Penalty(), ValueFunction()):
        solution = solve(scalar(3.0), strategy, progress=False)
        assert abs(float(solution.outer["u"]) - SOLUTION) <= 1e-3


def test_reptile_has_no_hypergradient_here() -> None:
    with pytest.raises(StructuralZeroError):
        solve(scalar(1.0), Reptile(), progress=False)


def several() -> PlainProblem:
    """G = |v - u|²/2 and F = |v - 1|² + u²/10, from u = v = 0."""
    zero = torch.zeros(1, dtype=torch.float64)
    return PlainProblem(
        {"u": zero.clone()},
        {"v": zero.clone()},
        lambda v, u: 0.5 * (v["v"] - u["u"]).square().sum(),
        lambda v, u: (v["v"] - 1).square().sum() + u["u"].square().sum() / 10,
    )


@pytest.mark.slow
def test_unrolling_starts_cold_and_a_warm_start_is_told() -> None:
    steps, rate = Unroll(InnerSteps(50, SGD(0.1))), partial(torch.optim.SGD, lr=0.1)
    cold = solve(several(), steps, rate, steps=80, progress=False)
    torch.testing.assert_close(
        cold.outer["u"], torch.full((1,), SOLUTION, dtype=torch.float64), atol=2e-2, rtol=0
    )
    few = Unroll(InnerSteps(5, SGD(0.1)))
    with pytest.warns(NotSolvedWarning, match="differs by .* % from"):
        warm = solve(several(), few, rate, steps=80, start="warm", progress=False)
    assert warm.certificate is not None
    assert warm.certificate.disagreement > 0.1


def test_v_far_from_its_minimiser_is_told() -> None:
    with pytest.warns(NotSolvedWarning, match="from a minimiser of the inner loss"):
        solution = solve(
            several(),
            Implicit(InnerSteps(1, SGD(0.01))),
            partial(torch.optim.SGD, lr=0.1),
            steps=3,
            start="cold",
            progress=False,
        )
    assert solution.certificate is not None
    # One Newton step of this quadratic is exact.
    u, v = float(solution.outer["u"]), float(solution.inner["v"])
    assert solution.certificate.inner_distance == pytest.approx(abs(u - v) / (1 + abs(v)), rel=0.5)


def test_negative_curvature_is_told() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    saddle = PlainProblem(
        {"u": zero.clone()},
        {"v": zero.clone()},
        lambda v, u: (
            0.5 * (v["v"][0] - u["u"][0]).square() - 0.5 * (v["v"][1] - u["u"][1]).square()
        ),
        lambda v, u: (v["v"] - 1).square().sum() + u["u"].square().sum(),
    )
    with pytest.warns(NotSolvedWarning, match="negative curvature"):
        solve(
            saddle,
            Implicit(InnerSteps(0)),
            partial(torch.optim.SGD, lr=0.0),
            steps=1,
            progress=False,
        )


def test_losses_beyond_all_bounds_are_divergence() -> None:
    with pytest.raises(DivergenceError, match=r"the (inner|outer) loss is .* at the first step"):
        solve(
            several(),
            Implicit(InnerSteps(20, SGD(3.0))),
            partial(torch.optim.SGD, lr=1.0),
            steps=50,
            progress=False,
        )


def test_the_last_update_is_checked() -> None:
    with pytest.raises(DivergenceError, match="outer variables are not finite"):
        solve(
            several(),
            Implicit(InnerSteps(20, SGD(0.5))),
            partial(torch.optim.SGD, lr=math.inf),
            steps=1,
            progress=False,
        )


def test_a_held_out_loss_of_nan_is_never_the_best() -> None:
    losses = iter([math.nan, 2.0, 3.0])
    solution = solve(
        several(),
        Implicit(InnerSteps(20, SGD(0.5))),
        partial(torch.optim.SGD, lr=0.1),
        steps=3,
        every=1,
        validate=lambda u, v: next(losses),
        progress=False,
    )
    held_out = [record["loss/held_out"] for record in solution.history]
    assert math.isnan(held_out[0])
    assert not torch.equal(solution.outer["u"], torch.zeros(1, dtype=torch.float64))


def test_stopping_by_time() -> None:
    with pytest.raises(NotSolvedError, match=r"after 1 outer step.* seconds are over") as error:
        solve(several(), seconds=1e-9, progress=False)
    assert error.value.solution.step == 1


def test_singular_inner_problem() -> None:
    """Synthetic example 3 of Mehra & Hamm: A has a null space, and CG ends far away."""
    torch.manual_seed(0)
    a = torch.randn(2, 4, dtype=torch.float64)

    def outer_loss(v: dict[str, Tensor], u: dict[str, Tensor]) -> Tensor:
        return (a @ u["u"]).square().sum() + (a @ v["v"]).square().sum()

    zero = torch.zeros(4, dtype=torch.float64)
    problem = PlainProblem(
        {"u": torch.randn(4, dtype=torch.float64)},
        {"v": zero.clone()},
        lambda v, u: (a @ (1 - u["u"] - v["v"])).square().sum(),
        outer_loss,  # type: ignore[arg-type]
    )
    solution = solve(problem, progress=False)
    half = a @ torch.full((4,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(a @ solution.outer["u"], half, atol=1e-3, rtol=0)


SLOW = partial(torch.optim.SGD, lr=0.05)


@pytest.mark.parametrize("strategy", [SOBA(), SABA(), AmIGO(), StocBiO()])
def test_step_sizes_that_must_fit_each_other_are_named(strategy: Strategy) -> None:
    """At c = 10 SOBA once ended 1.2 from the solution and called itself converged."""
    with pytest.raises(ConfigurationError, match="name an optimizer"):
        solve(scalar(10.0), strategy, steps=5, progress=False)
    with pytest.raises(ConfigurationError, match="convergence is not measured: name steps"):
        solve(scalar(10.0), strategy, SLOW, progress=False)
    solution = solve(scalar(10.0), strategy, SLOW, steps=400, progress=False)
    assert abs(float(solution.outer["u"]) - SOLUTION) < 1e-4


def sampled(blocks: int) -> PlainProblem:
    """The same with the mean of c over blocks as before; u = v at the minimum of each."""
    return replace(
        scalar(1.0),
        inner_loss=lambda v, u, c: c / 2 * (v["v"] - u["u"]).square(),
        inner_blocks=[0.5, 1.5][:blocks],
    )


def test_mini_batches_name_what_no_batch_can_tell() -> None:
    with pytest.raises(ConfigurationError, match=r"mini-batches, .* name an optimizer, such as"):
        solve(sampled(2), steps=5, progress=False)
    with pytest.raises(ConfigurationError, match=r"mini-batches, .* name steps, or patience"):
        solve(sampled(2), optimizer=SLOW, progress=False)
    assert solve(sampled(1), progress=False).converged  # One block is all of the data.


def test_one_batch_is_no_certificate_of_the_whole() -> None:
    """v is far from the minimiser of every batch after one step, and nothing is said of it."""
    short = Implicit(InnerSteps(1, SGD(0.01)))
    solution = solve(sampled(2), short, SLOW, steps=2, progress=False)
    assert solution.certificate is not None
    assert solution.certificate.sampled
    assert solution.certificate.doubts() == []
    assert replace(solution.certificate, sampled=False).doubts(strict=True)


@pytest.mark.parametrize("settings", [{"seconds": 0.0}, {"seconds": -1.0}, {"tolerance": math.nan}])
def test_limits_are_positive(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=r"it must be (finite and )?positive"):
        solve(several(), progress=False, **settings)  # type: ignore[arg-type]


def test_inner_steps_on_mini_batches_are_named() -> None:
    """Measured curvature is that of one batch: steps on others once ended far away silently."""
    with pytest.raises(ConfigurationError, match="of which no curvature is measured: name the"):
        solve(sampled(2), Implicit(), SLOW, steps=5, progress=False)


def test_the_best_variables_belong_to_each_other() -> None:
    """v minimises G for the u that is returned with it, and has the held-out loss that is told."""

    def held_out(u: Params, v: Mapping[str, Tensor]) -> float:
        return float((v["v"] - 0.5).square() + 0 * u["u"])

    adam = partial(torch.optim.Adam, lr=0.1)
    solution = solve(
        scalar(1.0), Implicit(), adam, steps=40, validate=held_out, every=1, progress=False
    )
    u, v = solution.outer["u"], solution.inner["v"]
    assert float((u - v).abs()) < 1e-8
    lowest = min(record["loss/held_out"] for record in solution.history)
    assert held_out(solution.outer, solution.inner) == pytest.approx(lowest)
