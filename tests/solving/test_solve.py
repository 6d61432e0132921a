"""The driver for any bilevel problem, on problems with known solutions."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, Params
from fewshot_blo.errors import CheckpointError, ConfigurationError, DivergenceError
from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll, ValueFunction
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.records.logs import LOG, read_log
from fewshot_blo.solving.constraints import Box, Constraint, Simplex
from fewshot_blo.solving.driver import FILE, Partial, Solution, solve
from fewshot_blo.solving.plan import Plan
from fewshot_blo.solving.problem import AFTER, PlainProblem
from fewshot_blo.solving.run import SolveRun

# Runs here are too short to solve their problems, which is told.
pytestmark = pytest.mark.filterwarnings("ignore::fewshot_blo.errors.NotSolvedWarning")

ADAM = partial(torch.optim.Adam, lr=0.05)
DESCENT = partial(torch.optim.SGD, lr=0.4)
A = torch.tensor([[2.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
TARGET = torch.tensor([1.0, -0.5], dtype=torch.float64)
EXACT = torch.linalg.solve(A, TARGET)


def quadratic(**settings: Any) -> PlainProblem:
    """v* = A u, so that F is least at u = A^-1 target."""
    return PlainProblem(
        outer={"u": torch.zeros(2, dtype=torch.float64)},
        inner={"v": torch.ones(2, dtype=torch.float64)},
        inner_loss=lambda v, u: 0.5 * (v["v"] - A @ u["u"]).square().sum(),
        outer_loss=lambda v, u: 0.5 * (v["v"] - TARGET).square().sum(),
        **settings,
    )


@pytest.mark.parametrize("start", ["cold", "warm", Partial(every=3), Partial(keep=0.5)])
@pytest.mark.parametrize(
    ("strategy", "error"),
    [
        (Unroll(InnerSteps(15, SGD(0.9))), 1e-6),
        (Implicit(InnerSteps(15, SGD(0.9)), ConjugateGradient(5)), 1e-6),
        (Penalty(InnerSteps(20, SGD(0.009)), rho=100.0, lam=0.0, epsilon=0.0), 1e-3),
        (ValueFunction(InnerSteps(20, SGD(0.9)), 20, lam=100.0), 1e-3),
    ],
    ids=["unroll", "implicit", "penalty", "value function"],
)
def test_strategies_reach_the_solution(strategy: Strategy, error: float, start: Any) -> None:
    problem = quadratic()
    solution = solve(problem, strategy, DESCENT, steps=60, start=start, every=20)
    torch.testing.assert_close(solution.outer["u"], EXACT, atol=error, rtol=0)
    torch.testing.assert_close(solution.outer["u"], problem.outer["u"].detach())
    assert [r["step"] for r in solution.history] == [20, 40, 60]
    assert (solution.step, solution.interrupted) == (60, False)


class Watched(Unroll):
    """Notes where inner problems start."""

    def hypergradient(self, problem: Bilevel, state: UnrollState) -> OuterStep:
        starts.append((state.inner or problem.inner_init)["v"][0].clone())
        return super().hypergradient(problem, state)


starts: list[Tensor] = []


def test_where_inner_problems_start() -> None:
    def found(start: Any) -> list[Tensor]:
        starts.clear()
        solve(quadratic(), Watched(InnerSteps(3, SGD(0.1))), ADAM, steps=5, start=start)
        return list(starts)

    own = torch.ones(2, dtype=torch.float64)
    assert all(torch.equal(v, own) for v in found("cold"))
    warm, partly = found("warm"), found(Partial(every=2))
    assert [torch.equal(v, own) for v in warm] == [True, False, False, False, False]
    assert [torch.equal(v, own) for v in partly] == [True, False, True, False, True]
    assert torch.equal(warm[1], partly[1])
    half = found(Partial(keep=0.5))
    torch.testing.assert_close(half[1], 0.5 * (own + warm[1]))
    assert all(torch.equal(v, own) for v in found(Partial(keep=0.0)))


@pytest.mark.parametrize("part", [slice(None), slice(1, 2)], ids=["all", "a view"])
def test_an_inner_start_does_not_move_with_an_outer_variable(part: slice) -> None:
    u = torch.zeros(2, dtype=torch.float64)
    problem = replace(quadratic(), outer={"u": u}, inner={"v": u[part]})
    strategy = Unroll(InnerSteps(1, SGD(0.5)))
    solve(problem, strategy, DESCENT, steps=3, start="cold", progress=False)
    assert bool(u.any())
    assert not problem.at(3).inner_init["v"].any()


@pytest.mark.parametrize(
    "strategy", [Unroll(InnerSteps(3, SGD(0.3))), Penalty(InnerSteps(3, SGD(0.1)), epsilon=10.0)]
)
def test_resumed_runs_take_the_same_steps(strategy: Strategy, tmp_path: Path) -> None:
    whole = solve(quadratic(), strategy, ADAM, steps=8)
    first = solve(quadratic(), strategy, ADAM, steps=3, every=3, folder=tmp_path)
    assert first.step == 3
    rest = solve(quadratic(), strategy, ADAM, steps=8, every=3, folder=tmp_path, resume=True)
    assert torch.equal(rest.outer["u"], whole.outer["u"])
    assert torch.equal(rest.inner["v"], whole.inner["v"])
    assert {file.name for file in tmp_path.iterdir()} >= {FILE, "log.jsonl", "curves.png"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_is_saved_and_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    signals = [number]

    def outer_batches(step: int) -> float:
        if step == 4 and signals:
            os.kill(os.getpid(), signals.pop())
        return 1.0

    def run(**settings: Any) -> Solution:
        problem = PlainProblem(
            {"u": torch.zeros(2)},
            {"v": torch.ones(2)},
            lambda v, u: (v["v"] - u["u"]).square().sum(),
            lambda v, u, batch: batch * (v["v"] - 3).square().sum(),
            outer_batches=outer_batches,
        )
        return solve(problem, Unroll(InnerSteps(2, SGD(0.2))), ADAM, steps=9, **settings)

    stopped = run(folder=tmp_path)
    assert (stopped.step, stopped.interrupted) == (5, True)
    rest = run(folder=tmp_path, resume=True)
    assert not rest.interrupted
    assert torch.equal(rest.outer["u"], run().outer["u"])


def test_batches_are_asked_for_by_number() -> None:
    asked: list[tuple[int, int]] = []

    def inner_batches(step: int, number: int) -> float:
        asked.append((step, number))
        return 1.0 + number

    problem = PlainProblem(
        {"u": torch.zeros(1)},
        {"v": torch.ones(1)},
        lambda v, u, batch: batch * (v["v"] - u["u"]).square().sum(),
        lambda v, u: (v["v"] - 3).square().sum(),
        inner_batches=inner_batches,
    )
    solve(problem, Unroll(InnerSteps(3, SGD(0.1))), ADAM, steps=2)
    certificate = (1, AFTER)
    assert asked == [*[(s, k) for s in range(2) for k in (0, 1, 2, AFTER)], certificate]


def test_constraints_hold_and_are_active_at_the_solution() -> None:
    seen: list[float] = []

    def validate(u: Params, v: Mapping[str, Tensor]) -> float:
        seen.append(float(u["u"].max()))
        return float((v["v"] - TARGET).square().sum())

    strategy = Unroll(InnerSteps(15, SGD(0.9)))
    constraints: dict[str, Constraint] = {"u": Box(0.0, 0.4)}
    solution = solve(
        quadratic(),
        strategy,
        DESCENT,
        steps=60,
        every=10,
        constraints=constraints,
        validate=validate,
    )
    assert max(seen) <= 0.4
    # With the second entry at its bound of 0, F is least at u_1 = 1/2, which the box does not hold.
    expected = torch.tensor([0.4, 0.0], dtype=torch.float64)
    torch.testing.assert_close(solution.outer["u"], expected, atol=1e-6, rtol=0)


def test_the_best_held_out_loss_is_kept_and_ends_the_run() -> None:
    solution = solve(
        quadratic(),
        Unroll(InnerSteps(5, SGD(0.9))),
        ADAM,
        steps=500,
        every=1,
        validate=lambda u, v: abs(float(u["u"][0]) - 0.3),
        patience=5,
    )
    losses = [record["loss/held_out"] for record in solution.history]
    assert losses.index(min(losses)) == len(losses) - 6
    assert abs(float(solution.outer["u"][0]) - 0.3) == pytest.approx(min(losses))
    assert solution.step < 500
    assert not solution.interrupted


def test_what_is_observed_is_recorded_and_decides_nothing(tmp_path: Path) -> None:
    def observe(u: Params, v: Mapping[str, Tensor]) -> dict[str, float]:
        return {"gap": float((v["v"] - TARGET).norm()), "first": float(u["u"][0])}

    strategy = Unroll(InnerSteps(3, SGD(0.3)))
    plain = solve(quadratic(), strategy, ADAM, steps=6, every=2)
    watched = solve(quadratic(), strategy, ADAM, steps=6, every=2, observe=observe, folder=tmp_path)
    assert torch.equal(watched.outer["u"], plain.outer["u"])
    assert [set(record) - {"gap", "first"} for record in watched.history] == [
        set(record) for record in plain.history
    ]
    # As the losses of a record, at the variables that its step was taken from.
    before = solve(quadratic(), strategy, ADAM, steps=5)
    assert watched.history[-1]["first"] == float(before.outer["u"][0])
    assert read_log(tmp_path / LOG)[-1]["gap"] == watched.history[-1]["gap"]


numbers = st.lists(st.floats(-10, 10), min_size=1, max_size=8)


@given(numbers, st.floats(0.1, 5))
def test_projection_onto_the_simplex_is_the_nearest_point(
    values: list[float], total: float
) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    p = Simplex(total).project(x)
    assert bool((p >= 0).all())
    assert float(p.sum()) == pytest.approx(total)
    # x - p is largest, and the same, where p is positive: the conditions of the nearest point.
    gap = x - p
    assert bool((gap[p > 1e-9] >= gap.max() - 1e-9).all())
    columns = torch.stack([x, x.flip(0)], 1)
    torch.testing.assert_close(Simplex(total, dim=0).project(columns)[:, 0], p)


def test_what_makes_no_sense(tmp_path: Path) -> None:
    strategy = Unroll(InnerSteps(1, SGD(0.1)))
    for settings, message in (
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1, "patience": 2}, "it needs validate"),
        ({"steps": 1, "resume": True}, "name the folder"),
        ({"steps": 1, "constraints": {"w": Box(0)}}, "'w', which is no variable; they are u, v"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            solve(quadratic(), strategy, ADAM, **settings)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        solve(quadratic(), strategy, ADAM, steps=1, folder=tmp_path, resume=True)
    solve(quadratic(), strategy, ADAM, steps=1, folder=tmp_path)
    with pytest.raises(CheckpointError, match="already holds a run"):
        solve(quadratic(), strategy, ADAM, steps=1, folder=tmp_path)
    other = PlainProblem(
        {"u": torch.zeros(3)}, {"v": torch.ones(3)}, lambda v, u: v["v"].sum(), lambda v, u: v["v"]
    )
    with pytest.raises(CheckpointError, match=r"outer variables \{'u': \[2\]\}.*\{'u': \[3\]\}"):
        solve(other, strategy, ADAM, steps=1, folder=tmp_path, resume=True)
    with pytest.raises(ConfigurationError, match=r"outer_loss has shape \[3\]"):
        solve(other, strategy, ADAM, steps=1)
    with pytest.raises(DivergenceError, match="outer step 1: Unroll: the outer loss"):
        solve(quadratic(), Unroll(InnerSteps(150, SGD(900.0))), ADAM, steps=2)
    for wrong in ({"every": -1}, {"keep": 1.5}):
        with pytest.raises(ConfigurationError, match=r"every is -1|keep is 1\.5"):
            Partial(**wrong)
    with pytest.raises(ConfigurationError, match="is empty"):
        Box(2, 1)
    with pytest.raises(ConfigurationError, match="total is 0: it must be positive"):
        Simplex(0)


def test_a_resumed_run_has_its_state_where_its_variables_are(tmp_path: Path) -> None:
    """And the count of Adam's steps on the host: "meta" stands for a GPU, and has no values."""
    solve(
        quadratic(),
        Penalty(InnerSteps(2, Adam(1e-2))),
        ADAM,
        steps=3,
        validate=lambda u, v: 1.0,
        folder=tmp_path,
    )
    u = torch.zeros(2, dtype=torch.float64, device="meta").requires_grad_()
    problem = PlainProblem({"u": u}, {"v": u.detach()}, lambda v, u: v["v"], lambda v, u: v["v"])
    strategy, plan = Penalty(InnerSteps(2, Adam(1e-2))), Plan(3, "warm", None, None, 0, 100)
    resumed = SolveRun(problem, strategy, ADAM, {}, plan, tmp_path)
    resumed.resume()
    count = resumed.optimizer.state[u]["step"]
    assert count.device.type == "cpu"
    assert float(count) == 3
    tensors = [*resumed.state.inner.values(), *resumed.state.multipliers.values()]
    tensors += [*resumed.best["outer"].values(), resumed.optimizer.state[u]["exp_avg"]]
    assert {p.device.type for p in tensors} == {"meta"}


@pytest.mark.parametrize(
    ("outer", "inner", "message"),
    [
        ({"u": 0.5}, {"v": torch.ones(2)}, r"outer\['u'\] is 0\.5: it must be a Tensor"),
        ({"u": torch.ones(2)}, {"v": [1.0]}, r"inner\['v'\] is \[1\.0\]: it must be a Tensor"),
        ([1.0], {"v": torch.ones(2)}, r"outer is \[1\.0\]: it must be a mapping"),
        (
            {"u": torch.ones(2)},
            torch.ones(2),
            "inner is a tensor of shape",
        ),
        ({"u": torch.ones(2).long()}, {"v": torch.ones(2)}, r"'u' is of torch.int64: .*float\(\)"),
        ({"u": torch.ones(2)}, {"v": torch.ones(2).bool()}, r"'v' is of torch.bool: .*float\(\)"),
        (
            {"u": torch.ones(2, requires_grad=True) * 2},
            {"v": torch.ones(2)},
            r"'u' is computed from other tensors: pass tensor.detach\(\)",
        ),
    ],
)
def test_what_is_no_variable_is_named(outer: Any, inner: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PlainProblem(outer, inner, lambda v, u: v["v"].sum(), lambda v, u: v["v"].sum())


def test_an_interrupt_without_a_folder_does_not_promise_a_save(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def observe(u: Params, v: Mapping[str, Tensor]) -> Mapping[str, float]:
        del u, v
        signal.raise_signal(signal.SIGTERM)
        return {}

    strategy = Implicit(InnerSteps(1, SGD(0.1)))
    solution = solve(quadratic(), strategy, ADAM, steps=5, every=1, observe=observe)
    assert solution.interrupted
    said = "SIGTERM: finishing this step, then returning; without a folder nothing is saved"
    assert said in capsys.readouterr().out
