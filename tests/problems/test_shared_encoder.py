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
from small_runs import make_dataset, make_sampler
from torch import Tensor, nn

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import (
    CosineHead,
    Head,
    LabelPropagationHead,
    MatchingHead,
    MaxMarginHead,
    RidgeHead,
)
from fewshot_blo.hypergrad import (
    BOME,
    Implicit,
    Penalty,
    Reptile,
    Strategy,
    Unroll,
    ValueFunction,
)
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.networks import Conv4
from fewshot_blo.networks.views import Views
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.training.running_statistics import update_statistics


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
    step = strategy.hypergradient(bound.bilevel, UnrollState())
    assert_same({"F": step.outer_loss}, {"F": losses})
    assert_same(bound.pullback(step.gradient), gradient)


@pytest.mark.parametrize(
    "strategy",
    [
        Unroll(InnerSteps(5, SGD())),
        Unroll(InnerSteps(5, SGD()), recompute=True),
        Implicit(InnerSteps(5)),
        Penalty(InnerSteps(5, Adam(1e-2)), rho=1e-2),
    ],
)
@pytest.mark.parametrize("norm", ["transductive", "support", "running"])
def test_one_backward_through_the_encoder_an_outer_step(strategy: Strategy, norm: Any) -> None:
    problem = SharedEncoder(encoder(), backend="loop")
    backwards: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.register_hook(lambda gradient: backwards.append(1))

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
        return strategy.hypergradient(bilevel, UnrollState()).outer_loss.mean()

    at = {name: p.detach().clone() for name, p in problem.outer.items()}
    assert float(at["log_prox"].exp()) == pytest.approx(0.5)
    bound = problem.bind(batch, "support")
    gradient = bound.pullback(strategy.hypergradient(bound.bilevel, UnrollState()).gradient)
    for names in (["log_prox"], list(at)):
        direction = random_direction(at)
        direction = {n: p if n in names else torch.zeros_like(p) for n, p in direction.items()}
        numeric = directional_difference(outer_loss, at, direction)
        assert dot(gradient, direction) == pytest.approx(numeric, rel=1e-6)


def test_prototype_start_is_a_prototypical_network() -> None:
    problem, batch = SharedEncoder(encoder(), backend="loop"), make_batch()
    bound = problem.bind(batch, "support")
    logits = bound.query_outputs(bound.bilevel.inner_init)
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
    gradient = bound.pullback(
        Unroll(InnerSteps(3, SGD())).hypergradient(bound.bilevel, UnrollState()).gradient
    )
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
        ({"prox": 0.0, "learn_prox": True}, "above 0 with learn_prox"),
        ({"start": "learned"}, "way is None and features is None"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SharedEncoder(encoder(), **settings)


def test_backend_must_be_chosen() -> None:
    with pytest.raises(ConfigurationError, match=r"prepare\(batch\)"):
        SharedEncoder(encoder()).bind(make_batch(), "support")


@pytest.mark.parametrize("head", [MatchingHead(), MaxMarginHead(), LabelPropagationHead()])
def test_a_head_with_a_formula_suits_a_strategy_that_needs_no_minimiser(head: Head) -> None:
    made = SharedEncoder(encoder(), head)
    for start in ("cold", "warm"):
        made.check_suits(Unroll(InnerSteps(0)), start)
    for strategy in (Implicit(), Penalty(), ValueFunction(), BOME(), Reptile()):
        name = rf"{type(strategy).__name__} needs minimizers .* of {type(head).__name__} are"
        with pytest.raises(ConfigurationError, match=name):
            made.check_suits(strategy, "cold")
        SharedEncoder(encoder(), RidgeHead()).check_suits(strategy, "cold")


def test_a_centre_is_what_simpleshot_subtracts() -> None:
    """Features relative to their mean over the training images, outside of training."""
    network, tasks = encoder(), make_sampler(make_dataset(), dtype=torch.float64)
    made = SharedEncoder(network, centre=True, features=8, backend="batched")
    plain = SharedEncoder(network, backend="batched")
    assert list(made.outer) == [f"encoder.{name}" for name in plain.outer]
    for problem in (made, plain):
        update_statistics(problem, tasks)
        problem.network.eval()
    with torch.no_grad():
        features = plain.network(tasks.dataset.images.double() / 255)
        assert_same(
            {"centre": made.network.get_buffer("centre.mean")}, {"centre": features.mean(0)}
        )
        mine, theirs = (p.bind(tasks.batch(0), "running").bilevel.outer for p in (made, plain))
        shift = features.mean(0) / 8**0.5
        assert_same({"x": mine["features"]}, {"x": theirs["features"] - shift})
    with pytest.raises(ConfigurationError, match="a centre needs features"):
        SharedEncoder(network, centre=True)


def test_an_encoder_of_ones_own_may_make_its_views() -> None:
    class Seeing(nn.Flatten):
        seen = "one"

        def with_views(self, views: Views) -> Seeing:
            changed = Seeing()
            changed.seen = views
            return changed

    made = SharedEncoder(Seeing(), RidgeHead()).with_views("scales")
    assert made.network.seen == "scales"
    assert made.views.views == "one"
