from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import (
    PLAIN_HEADS,
    assert_same,
    directional_difference,
    dot,
    make_batch,
    plain_linear,
    plain_network,
    plain_shared_encoder,
    plain_unroll,
    random_direction,
    single_tasks,
)
from torch import Tensor, nn

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import CosineHead
from fewshot_blo.hypergrad import Implicit, Penalty, State, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.networks import Conv4
from fewshot_blo.problems import SharedEncoder


def encoder() -> nn.Module:
    return Conv4(hidden=8).double()


@pytest.mark.parametrize("start", ["zeros", "prototypes", "learned"])
@pytest.mark.parametrize("first_order", [False, True])
def test_pullback_equals_one_graph_from_end_to_end(start: Any, first_order: bool) -> None:
    problem = SharedEncoder(encoder(), start=start, prox=0.3, way=3, features=8, backend="batched")
    batch, plain = make_batch(), plain_network(problem.network)
    tasks = [
        plain_shared_encoder(
            plain, problem.outer, task, "support", prox=0.3, start=start, head=PLAIN_HEADS["linear"]
        )
        for task in single_tasks(batch)
    ]
    losses, gradient = plain_unroll(tasks, 3, 0.2, first_order=first_order)
    bound = problem.bind(batch, "support")
    strategy = Unroll(InnerSteps(3, SGD(0.2)), first_order=first_order)
    step = strategy.hypergradient(bound.bilevel, State())
    assert_same({"F": step.outer_loss}, {"F": losses})
    assert_same(bound.pullback(step.gradient), gradient)


@pytest.mark.parametrize(
    "strategy",
    [
        Unroll(InnerSteps(5)),
        Unroll(InnerSteps(5), recompute=True),
        Implicit(InnerSteps(5)),
        Penalty(InnerSteps(5, Adam(1e-2))),
    ],
)
@pytest.mark.parametrize("norm", ["transductive", "support", "running"])
def test_one_backward_through_the_encoder_an_outer_step(strategy: Strategy, norm: Any) -> None:
    problem = SharedEncoder(encoder(), backend="loop")
    backwards: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.register_hook(lambda gradient: backwards.append(1))  # type: ignore[no-untyped-call]

    problem.network.get_submodule("blocks.block1").register_forward_hook(count)
    batch = make_batch(tasks=1)
    bound = problem.bind(batch, norm)
    passes = 1 if norm == "support" else 2  # support and query images
    step = strategy.hypergradient(bound.bilevel, strategy.init())
    assert not backwards
    gradient = bound.pullback(step.gradient)
    assert len(backwards) == passes
    for name in problem.outer:
        # The batch's own statistics take a bias away again: its gradient is exactly zero.
        lost = name.endswith("convolution.bias") and norm != "running"
        assert (gradient[name].abs().max() == 0) == lost, name


@pytest.mark.parametrize(
    "strategy",
    [Unroll(InnerSteps(4, SGD(0.2))), Implicit(InnerSteps(150, SGD(0.3)), ConjugateGradient(40))],
    ids=["unroll", "implicit"],
)
def test_learned_prox_agrees_with_finite_differences(strategy: Strategy) -> None:
    features = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.Tanh()).double()
    problem = SharedEncoder(features, prox=0.5, start="zeros", learn_prox=True, backend="batched")
    batch = make_batch()

    def outer_loss(outer: Params) -> Tensor:
        with torch.no_grad():
            for name, p in outer.items():
                problem.outer[name].copy_(p)
        bilevel = problem.bind(batch, "support").bilevel
        return strategy.hypergradient(bilevel, State()).outer_loss.mean()

    at = {name: p.detach().clone() for name, p in problem.outer.items()}
    assert float(at["log_prox"].exp()) == pytest.approx(0.5)
    bound = problem.bind(batch, "support")
    gradient = bound.pullback(strategy.hypergradient(bound.bilevel, State()).gradient)
    for names in (["log_prox"], list(at)):
        direction = random_direction(at)
        direction = {n: p if n in names else torch.zeros_like(p) for n, p in direction.items()}
        numeric = directional_difference(outer_loss, at, direction)
        assert dot(gradient, direction) == pytest.approx(numeric, rel=1e-6)


def test_prototype_start_is_a_prototypical_network() -> None:
    problem, batch = SharedEncoder(encoder(), backend="loop"), make_batch()
    bound = problem.bind(batch, "support")
    logits = bound.query_logits(bound.bilevel.inner_init)
    plain, outer = plain_network(problem.network), problem.outer
    for t, task in enumerate(single_tasks(batch)):
        one = plain_shared_encoder(
            plain, outer, task, "support", prox=0.1, start="prototypes", head=PLAIN_HEADS["linear"]
        )
        params = {n: p[0] for n, p in one.inner_init.items()}
        assert plain_linear(params, torch.zeros(1, 8).double()).shape == (1, 3)
        expected = one.outer_loss(one.inner_init)
        loss = torch.nn.functional.cross_entropy(logits[t], batch.query_y[t])
        torch.testing.assert_close(loss, expected[0])


def test_frozen_encoder_learns_what_is_left() -> None:
    frozen = encoder().requires_grad_(False)
    problem = SharedEncoder(frozen, start="zeros", learn_prox=True, backend="batched")
    assert list(problem.outer) == ["log_prox"]
    assert problem.outer["log_prox"].dtype == torch.float64
    bound = problem.bind(make_batch(), "support")
    gradient = bound.pullback(Unroll(InnerSteps(3)).hypergradient(bound.bilevel, State()).gradient)
    assert list(gradient) == ["log_prox"]
    assert not SharedEncoder(frozen).outer  # It can still be evaluated.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"head": CosineHead(), "start": "zeros"},
            "use one of prototypes, learned",
        ),
        ({"prox": -0.1}, r"prox is -0\.1"),
        ({"prox": 0.0, "learn_prox": True}, "must be positive to be learned"),
        ({"start": "learned"}, "needs way and features; they are None and None"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SharedEncoder(encoder(), **settings)


def test_backend_must_be_chosen() -> None:
    with pytest.raises(ConfigurationError, match=r"prepare\(batch\)"):
        SharedEncoder(encoder()).bind(make_batch(), "support")
