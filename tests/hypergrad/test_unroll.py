from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import (
    Quadratic,
    assert_same,
    directional_difference,
    dot,
    make_batch,
    random_direction,
)
from torch import nn

from fewshot_blo.bilevel import Bilevel, Params, TaskParams
from fewshot_blo.errors import ConfigurationError, StructuralZeroError
from fewshot_blo.hypergrad import Unroll, outer_step, unroll
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import (
    SGD,
    Adam,
    Backend,
    InnerSteps,
    LearnedSGD,
    Momentum,
    UpdateRule,
    adapt,
)
from fewshot_blo.problems import Initialization

COLD = UnrollState()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 20])
def test_equals_the_formula_for_gradient_descent(steps: int, recompute: bool) -> None:
    quadratic = Quadratic.random()
    step, _ = outer_step(
        Unroll(InnerSteps(steps, SGD(0.2)), recompute=recompute), quadratic.bilevel(), COLD
    )
    inner, gradient = quadratic.descent(steps, 0.2)
    assert_same({"v": Quadratic.join(step.inner), **step.gradient}, {"v": inner, "u": gradient})


def test_many_steps_reach_the_exact_hypergradient() -> None:
    quadratic = Quadratic.random()
    step, _ = outer_step(Unroll(InnerSteps(120, SGD(0.3))), quadratic.bilevel(), COLD)
    assert_same(
        {"v": Quadratic.join(step.inner), **step.gradient},
        {"v": quadratic.minimiser(), "u": quadratic.exact()},
    )


def test_reports_losses_at_the_inner_parameters() -> None:
    problem = Quadratic.random().bilevel()
    step, _ = outer_step(Unroll(InnerSteps(3, SGD())), problem, COLD)
    torch.testing.assert_close(step.outer_loss, problem.outer_loss(step.inner).detach())
    torch.testing.assert_close(step.inner_loss, problem.inner_loss(step.inner).detach())
    assert not any(p.requires_grad for p in [*step.inner.values(), step.outer_loss])


@pytest.mark.parametrize(
    ("outer_step_number", "weights"),
    [
        (0, [0.25, 0.25, 0.25, 0.25]),
        (5, [0.125, 0.125, 0.125, 0.625]),
        (9, [0.025, 0.025, 0.025, 0.925]),
        (10, [0, 0, 0, 1]),
        (99, [0, 0, 0, 1]),
    ],
)
def test_loss_of_all_steps(outer_step_number: int, weights: list[float]) -> None:
    problem = Quadratic.random().bilevel()
    strategy = Unroll(InnerSteps(4, SGD(0.2)), multi_step=10)
    state = strategy.init()
    for _ in range(outer_step_number):
        state = strategy.advance(state, strategy.hypergradient(problem, state)).cold()
    gradient = strategy.hypergradient(problem, state).gradient
    each = [
        Unroll(InnerSteps(k + 1, SGD(0.2))).hypergradient(problem, COLD).gradient["u"]
        for k in range(4)
    ]
    expected = torch.stack([w * g for w, g in zip(weights, each, strict=True)]).sum(0)
    torch.testing.assert_close(gradient["u"], expected)


def test_earlier_losses_keep_a_little_weight_until_the_end() -> None:
    problem = Quadratic.random().bilevel()
    strategy = Unroll(InnerSteps(2, SGD(0.2)), multi_step=1000)
    state = UnrollState(outer_step=torch.tensor(999.0, dtype=torch.float64))
    gradient = strategy.hypergradient(problem, state).gradient
    one, two = (
        Unroll(InnerSteps(k, SGD(0.2))).hypergradient(problem, COLD).gradient["u"] for k in (1, 2)
    )
    torch.testing.assert_close(gradient["u"], 0.015 * one + 0.985 * two)


@pytest.mark.parametrize("settings", [{"recompute": True}, {"inner": InnerSteps(0)}])
def test_loss_of_all_steps_needs_their_parameters(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="multi_step needs the parameters"):
        Unroll(multi_step=10, **settings)


def test_second_derivatives_where_a_step_is_differentiated_exactly() -> None:
    for exact in (Unroll(InnerSteps(2, SGD())), Unroll(InnerSteps(2, SGD()), truncate=1)):
        assert exact.derivatives == "second"
    for first in (
        Unroll(InnerSteps(0)),
        Unroll(InnerSteps(2, SGD()), first_order=True),
        Unroll(InnerSteps(2, SGD()), truncate=0),
    ):
        assert first.derivatives == "first"


def test_recomputes_where_it_was_left_open_and_changes_something() -> None:
    assert Unroll(InnerSteps(6, SGD())).with_recompute(None) == Unroll(
        InnerSteps(6, SGD()), recompute=True
    )
    assert Unroll(InnerSteps(5, SGD())).with_recompute(None) == Unroll(
        InnerSteps(5, SGD()), recompute=False
    )
    assert Unroll(InnerSteps(5, SGD())).with_recompute(True) == Unroll(
        InnerSteps(5, SGD()), recompute=True
    )
    settled = (
        Unroll(InnerSteps(9, SGD()), recompute=False),
        Unroll(InnerSteps(9, SGD()), multi_step=10),
        Unroll(InnerSteps(9, SGD()), first_order=True),
    )
    for strategy in settled:
        assert strategy.with_recompute(True) == strategy


def test_shortened_to_at_most_so_many_steps() -> None:
    assert Unroll(InnerSteps(9, SGD(0.2))).shortened(2) == Unroll(InnerSteps(2, SGD(0.2)))
    assert Unroll(InnerSteps(9, SGD(0.2))).shortened(10) == Unroll(InnerSteps(9, SGD(0.2)))
    truncated = Unroll(InnerSteps(9, SGD(0.2)), truncate=3)
    assert truncated.shortened(2) == truncated


def test_warm_start_continues_the_descent() -> None:
    quadratic = Quadratic.random()
    strategy = Unroll(InnerSteps(4, SGD(0.2)))
    step, state = outer_step(strategy, quadratic.bilevel(), strategy.init())
    step, state = outer_step(strategy, quadratic.bilevel(), state)
    assert_same(step.inner, Quadratic.cut(quadratic.descent(8, 0.2)[0]))
    cold, _ = outer_step(strategy, quadratic.bilevel(), state.cold())
    assert_same(cold.inner, Quadratic.cut(quadratic.descent(4, 0.2)[0]))


def test_first_order_truncated_and_exact() -> None:
    problem = Quadratic.random().bilevel

    def gradient(**settings: Any) -> torch.Tensor:
        strategy = Unroll(InnerSteps(6, SGD(0.1)), **settings)
        return outer_step(strategy, problem(), COLD)[0].gradient["u"]

    exact = gradient()
    assert torch.equal(gradient(truncate=6), exact)
    assert torch.equal(gradient(truncate=60), exact)
    assert torch.equal(gradient(truncate=0), gradient(first_order=True))
    distances = [float((gradient(truncate=n) - exact).norm()) for n in range(7)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1 * exact.norm()


class Smooth(nn.Sequential):
    """A tanh network with one norm layer."""

    def __init__(self, norm: nn.Module) -> None:
        convolution = nn.Conv2d(1, 8, 3, stride=4)
        super().__init__(
            convolution,
            norm,
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(128, 6),
            nn.Tanh(),
            nn.Linear(6, 3),
        )


SMOOTH_NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(8),
    "layer": lambda: nn.LayerNorm([8, 4, 4]),
    "group": lambda: nn.GroupNorm(4, 8),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True),
    "none": nn.Identity,
}


@pytest.mark.parametrize("backend", ["batched", "loop"])
@pytest.mark.parametrize("norm", SMOOTH_NORMS)
def test_agrees_with_finite_differences(norm: str, backend: Backend) -> None:
    network = Smooth(SMOOTH_NORMS[norm]()).double()
    for p in network.parameters():
        nn.init.normal_(p, std=0.4)
    problem = Initialization(network, step_size=0.3, prox=0.2, backend=backend)
    batch, strategy = make_batch(), Unroll(InnerSteps(3, LearnedSGD()))

    def outer_loss(outer: Params) -> torch.Tensor:
        with torch.no_grad():
            for name, p in outer.items():
                problem.outer[name].copy_(p)
        return strategy.hypergradient(
            problem.bind(batch, "support").bilevel, COLD
        ).outer_loss.mean()

    at = {name: p.detach().clone() for name, p in problem.outer.items()}
    gradient = strategy.hypergradient(problem.bind(batch, "support").bilevel, COLD).gradient
    direction = random_direction(at)
    numeric = directional_difference(outer_loss, at, direction)
    assert dot(gradient, direction) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "recomputed"),
    [
        ({"inner": InnerSteps(5, SGD())}, False),
        ({"inner": InnerSteps(6, SGD())}, True),
        ({"inner": InnerSteps(6, SGD()), "recompute": False}, False),
        ({"inner": InnerSteps(1, SGD()), "recompute": True}, True),
        ({"inner": InnerSteps(6, SGD()), "first_order": True}, False),
        ({"inner": InnerSteps(20, SGD()), "truncate": 5}, False),
        ({"inner": InnerSteps(20, SGD()), "truncate": 6}, True),
        ({"inner": InnerSteps(5, SGD()), "truncate": 20}, False),
    ],
)
def test_many_exact_steps_are_recomputed(
    settings: dict[str, int], recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def record(*args: Any, recompute: bool, **options: Any) -> TaskParams:
        seen.append(recompute)
        return adapt(*args, recompute=recompute, **options)

    monkeypatch.setattr(unroll, "adapt", record)
    outer_step(Unroll(**settings), Quadratic.random().bilevel(), COLD)  # type: ignore[arg-type]
    assert seen == [recomputed]


@pytest.mark.parametrize("rule", [SGD(0.1), Momentum(0.1), Adam(0.1, eps=1e-3)])
@pytest.mark.parametrize("truncate", [None, 0, 3])
@pytest.mark.parametrize("kept_states", [0, 3])
def test_recomputing_changes_nothing(
    rule: UpdateRule, truncate: int | None, kept_states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without room for all states, steps are cut into segments.
    monkeypatch.setattr("fewshot_blo.kernel.recompute._STATES", kept_states)
    problem = Quadratic.random().bilevel
    for steps in (1, 5, 12, 30):
        kept, _ = outer_step(
            Unroll(InnerSteps(steps, rule), truncate=truncate, recompute=False), problem(), COLD
        )
        again, _ = outer_step(
            Unroll(InnerSteps(steps, rule), truncate=truncate, recompute=True), problem(), COLD
        )
        assert_same(again.inner, kept.inner, 0)
        assert_same(again.gradient, kept.gradient, 1e-14)


def test_unused_outer_variable_is_a_structural_zero() -> None:
    quadratic = Quadratic.random()
    for recompute in (False, True):
        problem = quadratic.bilevel()
        outer = {**problem.outer, "spare": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
        problem = type(problem)(outer, problem.inner_init, problem.inner_loss, problem.outer_loss)
        with pytest.raises(StructuralZeroError, match=r"'spare'.*requires_grad_"):
            outer_step(Unroll(InnerSteps(2, SGD()), recompute=recompute), problem, COLD)


@pytest.mark.parametrize("steps", [2, 6, 40])
def test_an_unused_parameter_that_adapts_is_a_structural_zero(steps: int) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    network.register_parameter("spare", nn.Parameter(torch.ones(2)))
    batch = make_batch(tasks=2, size=2)
    problem = Initialization(network.double(), prove=False, backend="loop")
    for recompute in (False, True):
        strategy = Unroll(InnerSteps(steps, SGD(0.01)), recompute=recompute)
        bilevel = problem.bind(batch, "support").bilevel
        with pytest.raises(StructuralZeroError, match="'spare'"):
            strategy.hypergradient(bilevel, COLD)


def test_a_number_of_steps_needs_a_rule() -> None:
    """Their measured sizes depend on u, and the derivative does not see it."""
    with pytest.raises(ConfigurationError, match=r"3 inner steps without a rule.*SGD\(0.1\)"):
        outer_step(Unroll(InnerSteps(3)), Quadratic.random().bilevel(), COLD)


@pytest.mark.parametrize("inner", [InnerSteps(rule=SGD(0.1), tolerance=1e-2), InnerSteps()])
def test_steps_to_a_tolerance_are_those_of_each_task_alone(inner: InnerSteps) -> None:
    curvatures = torch.tensor([[0.1, 1.0], [4.0, 5.0], [0.5, 8.0]], dtype=torch.float64)

    def step_of(tasks: slice) -> Any:
        a = curvatures[tasks]
        u = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        start = {"v": torch.zeros(len(a), 2, dtype=torch.float64)}
        problem = Bilevel(
            {"u": u},
            start,
            lambda v: 0.5 * (a * (v["v"] - u).square()).sum(1),
            lambda v: (v["v"] ** 3).sum(1),
        )
        return outer_step(Unroll(inner), problem, COLD)[0]

    together = step_of(slice(None))
    alone = [step_of(slice(t, t + 1)) for t in range(3)]
    counts = torch.cat([step.figures["inner_steps"] for step in alone])
    assert len(set(counts.tolist())) == 3
    assert torch.equal(together.figures["inner_steps"], counts)
    torch.testing.assert_close(together.inner["v"], torch.cat([s.inner["v"] for s in alone]))
    mean = torch.stack([s.gradient["u"] for s in alone]).mean(0)
    torch.testing.assert_close(together.gradient["u"], mean)


@pytest.mark.slow
def test_divergence_stops_with_the_cause() -> None:
    with pytest.raises(
        FloatingPointError, match=r"Unroll: the outer loss of task 0 is .*step size"
    ):
        outer_step(Unroll(InnerSteps(1000, SGD(10.0))), Quadratic.random().bilevel(), COLD)


@pytest.mark.parametrize("settings", [{"truncate": -2}, {"first_order_steps": -1}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="must be at least 0"):
        Unroll(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="exclude each other"):
        Unroll(first_order=True, truncate=1)


def test_start_that_the_loss_uses_as_well_is_no_parameter() -> None:
    """The inner gradient is the partial one, also where v_0 is the very tensor u."""
    u = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)

    def inner_loss(v: TaskParams) -> torch.Tensor:
        return (v["v"] * u).sum(1)

    def outer_loss(v: TaskParams) -> torch.Tensor:
        return v["v"].square().sum(1)

    step, _ = outer_step(
        Unroll(InnerSteps(1, SGD(0.5))), Bilevel({"u": u}, {"v": u}, inner_loss, outer_loss), COLD
    )
    assert float(step.inner["v"]) == pytest.approx(1.0)
    assert float(step.gradient["u"]) == pytest.approx(2 * 1.0 * 0.5)


def test_phases() -> None:
    last = Unroll(InnerSteps(3, SGD(0.2)))
    first = replace(last, first_order=True)

    def phases(**settings: Any) -> Any:
        return replace(last, **settings).phases

    assert last.phases == ((0, last),)
    assert phases(first_order_steps=7) == ((0, first), (7, last))
    weighted = replace(last, multi_step=5)
    assert phases(multi_step=5) == ((0, weighted), (5, last))
    assert phases(first_order_steps=2, multi_step=5) == (
        (0, replace(weighted, first_order=True)),
        (2, weighted),
        (5, last),
    )
    assert phases(first_order_steps=5, multi_step=2)[1] == (2, first)
    assert phases(first_order_steps=5, truncate=2) == ((0, first), (5, replace(last, truncate=2)))
    assert replace(last, first_order_steps=7).derivatives == "second"


def test_the_first_outer_steps_are_of_first_order() -> None:
    """The state counts them, where nobody else says which phase it is."""
    strategy = Unroll(InnerSteps(3, SGD(0.2)), first_order_steps=2)
    problem, state = Quadratic.random().bilevel(), strategy.init()
    first, second = (
        Unroll(InnerSteps(3, SGD(0.2)), first_order=True),
        Unroll(InnerSteps(3, SGD(0.2))),
    )
    for number in range(4):
        step, state = outer_step(strategy, problem, state.cold())
        phase = first if number < 2 else second
        assert strategy.at(number) == phase
        expected = phase.hypergradient(problem, phase.init())
        assert torch.equal(step.gradient["u"], expected.gradient["u"])
