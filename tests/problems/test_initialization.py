from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_same, make_batch, make_ragged_batch, normal, single_tasks
from torch import nn
from torch.func import functional_call

from fewshot_blo.bilevel import OuterStep
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import LinearHead
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import SGD, Backend, InnerSteps, LearnedSGD
from fewshot_blo.networks import Conv4, Norm, classifier
from fewshot_blo.objectives import Accuracy
from fewshot_blo.objectives.cross_entropy import task_cross_entropy
from fewshot_blo.objectives.tasks import on_query
from fewshot_blo.problems import Initialization, SharedEncoder
from fewshot_blo.problems.few_shot import norm_modes


def network(norm: Norm = "batch") -> nn.Sequential:
    return classifier(Conv4(hidden=8, norm=norm), 8, 3).double()


def test_starts_from_the_outer_parameters() -> None:
    problem = Initialization(network(), prox=0.7, backend="batched")
    batch = make_batch()
    bilevel = problem.bind(batch, "support").bilevel
    for name, p in bilevel.inner_init.items():
        assert torch.equal(p, problem.outer[name].expand(3, *p.shape[1:]))
    alone = Initialization(network(), backend="batched")
    alone.network.load_state_dict(problem.network.state_dict())
    torch.testing.assert_close(
        bilevel.inner_loss(bilevel.inner_init),
        alone.bind(batch, "support").bilevel.inner_loss(bilevel.inner_init),
    )


def test_proximal_term_is_half_the_squared_distance() -> None:
    near, far = (Initialization(network("none"), prox=p, backend="loop") for p in (0.0, 0.7))
    far.network.load_state_dict(near.network.state_dict())
    batch = make_batch()
    moved = {n: p + 0.1 for n, p in far.bind(batch, "support").bilevel.inner_init.items()}
    difference = [
        problem.bind(batch, "support").bilevel.inner_loss(moved) for problem in (far, near)
    ]
    size = sum(p.numel() for p in far.outer.values())
    expected = torch.full((3,), 0.35 * 0.01 * size, dtype=torch.float64)
    torch.testing.assert_close(difference[0] - difference[1], expected)


def test_network_is_copied() -> None:
    original = network()
    problem = Initialization(original)
    problem.outer["head.bias"].data.add_(1)
    assert not torch.equal(original.get_parameter("head.bias"), problem.outer["head.bias"])


def test_frozen_parameters_stay_out() -> None:
    frozen = network()
    frozen.get_submodule("encoder").requires_grad_(False)
    problem = Initialization(frozen, backend="loop")
    assert list(problem.outer) == ["head.weight", "head.bias"]
    bound = problem.bind(make_batch(), "support")
    step = Unroll(InnerSteps(2, SGD(0.1))).hypergradient(bound.bilevel, UnrollState())
    assert list(step.inner) == ["head.weight", "head.bias"]


@pytest.mark.parametrize("adapted", ["head.", ("head.",)])
def test_parameters_that_do_not_adapt_are_shared(adapted: str | tuple[str, ...]) -> None:
    problem = Initialization(network("none"), adapted=adapted, backend="batched")
    assert problem.adapted == ["head.weight", "head.bias"]
    batch = make_batch()
    step = Unroll(InnerSteps(2, SGD(0.3))).hypergradient(
        problem.bind(batch, "support").bilevel, UnrollState()
    )
    assert list(step.inner) == problem.adapted
    assert list(step.gradient) == list(problem.outer)
    # Only the head moves: its features are those of the initial encoder.
    params = {n: p.detach() for n, p in problem.outer.items()}
    head = {n: p[0] for n, p in step.inner.items()}
    logits = functional_call(problem.network, {**params, **head}, (batch.query_x[0],))
    torch.testing.assert_close(F.cross_entropy(logits, batch.query_y[0]), step.outer_loss[0])


NORMS = {f"encoder.blocks.block{n + 1}.norm.{p}" for n in range(4) for p in ("weight", "bias")}


@pytest.mark.parametrize(
    ("adapted", "shared"),
    [
        ("all", lambda name: False),
        ("head", lambda name: not name.startswith("head.")),
        ("body", lambda name: name.startswith("head.")),
        ("no_norms", lambda name: name in NORMS),
        (
            ["head.bias", "encoder.blocks.0."],
            lambda name: name != "head.bias" and "s.0" not in name,
        ),
    ],
)
def test_what_adapts_has_a_word(adapted: str | list[str], shared: Callable[[str], bool]) -> None:
    problem = Initialization(network(), adapted=adapted, backend="batched")
    inner = problem.bind(make_batch(), "support").bilevel.inner_init
    assert list(inner) == [name for name in problem.outer if not shared(name)]


@pytest.mark.parametrize("adapted", ["head", "body", "no_such"])
def test_a_word_that_fits_no_parameter(adapted: str) -> None:
    with pytest.raises(ConfigurationError, match="no trainable parameter has a name that starts"):
        Initialization(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), adapted=adapted)


def test_a_network_of_norms_alone_has_nothing_else_to_adapt() -> None:
    with pytest.raises(ConfigurationError, match="is outside of norm layers"):
        Initialization(nn.Sequential(nn.Flatten(), nn.LayerNorm(4)), adapted="no_norms")


def test_learned_step_sizes_are_outer_variables() -> None:
    problem = Initialization(network(), adapted="head.", step_size=0.25, backend="loop")
    sizes = [name for name in problem.outer if name.startswith("step_size/")]
    assert sizes == ["step_size/head.weight", "step_size/head.bias"]
    assert all(float(problem.outer[name].detach()) == 0.25 for name in sizes)
    batch = make_batch()
    learned = Unroll(InnerSteps(2, LearnedSGD())).hypergradient(
        problem.bind(batch, "support").bilevel, UnrollState()
    )
    plain = Initialization(network(), adapted="head.", backend="loop")
    plain.network.load_state_dict(problem.network.state_dict())
    fixed = Unroll(InnerSteps(2, SGD(0.25))).hypergradient(
        plain.bind(batch, "support").bilevel, UnrollState()
    )
    assert_same(learned.inner, fixed.inner)


def test_from_prototypes_without_steps_it_is_a_prototypical_network() -> None:
    adapting = Initialization(network(), start="prototypes", backend="batched")
    encoder = adapting.network.get_submodule("encoder")
    shared = SharedEncoder(encoder, LinearHead(), start="prototypes", backend="batched")
    batch = make_ragged_batch()
    steps = []
    for problem in (adapting, shared):
        bound = problem.bind(batch, "transductive")
        step = Unroll(InnerSteps(0)).hypergradient(bound.bilevel, UnrollState())
        steps.append((step, bound.pullback(step.gradient)))
    (ours, gradient), (theirs, expected) = steps
    torch.testing.assert_close(ours.outer_loss, theirs.outer_loss)
    assert_same(gradient, {f"encoder.{name}": p for name, p in expected.items()})


def test_from_prototypes_the_way_is_that_of_the_tasks() -> None:
    problem = Initialization(network(), start="prototypes", backend="batched")
    assert not any(name.startswith("head.") for name in problem.outer)
    bound = problem.bind(make_batch(way=5), "support")
    step = Unroll(InnerSteps(2, SGD(0.1))).hypergradient(bound.bilevel, UnrollState())
    assert step.inner["head.weight"].shape == (3, 5, 8)
    assert bound.query_outputs(step.inner).shape[-1] == 5


@pytest.mark.parametrize("prox", [0.0, 0.7])
def test_gradient_through_prototypes_agrees_with_finite_differences(prox: float) -> None:
    problem = Initialization(
        network(), start="prototypes", prox=prox, step_size=0.05, backend="batched"
    )
    batch, strategy = make_batch(), Unroll(InnerSteps(2, LearnedSGD()))

    def step() -> OuterStep:
        bound = problem.bind(batch, "support")
        return strategy.hypergradient(bound.bilevel, UnrollState())

    direction = {n: normal(*p.shape, seed=i) for i, (n, p) in enumerate(problem.outer.items())}
    slope = sum(float((p * direction[n]).sum()) for n, p in step().gradient.items())
    ends = []
    for size in (1e-6, -2e-6, 1e-6):
        for name, p in problem.outer.items():
            p.data += size * direction[name]
        ends.append(float(step().outer_loss.mean()))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_what_starts_from_prototypes_adapts() -> None:
    with pytest.raises(ConfigurationError, match=r"head\.weight and head\.bias do not"):
        Initialization(network(), start="prototypes", adapted="encoder.")
    with pytest.raises(ConfigurationError, match="Conv4 without an encoder and a linear head"):
        Initialization(Conv4(hidden=8), start="prototypes")
    with pytest.raises(ConfigurationError, match="start is 'zeros'"):
        Initialization(network(), start="zeros")  # type: ignore[arg-type]


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigurationError, match=r"starts with \('body\.',\).*encoder"):
        Initialization(network(), adapted="body.")
    with pytest.raises(ConfigurationError, match=r"prox is -1\.0"):
        Initialization(network(), prox=-1.0)
    with pytest.raises(ConfigurationError, match=r"prepare\(batch\)"):
        Initialization(network()).bind(make_batch(), "support")


def test_inductive_predictions_do_not_depend_on_other_queries() -> None:
    problem, batch = Initialization(network(), backend="batched"), make_batch(query=4)
    single = type(batch)(
        batch.support_x, batch.support_y, batch.query_x[:, :1], batch.query_y[:, :1], batch.classes
    )
    start = problem.bind(batch, "support").bilevel.inner_init
    for mode in ("support", "running"):
        together = problem.bind(batch, mode).query_outputs(start)
        alone = problem.bind(single, mode).query_outputs(start)
        torch.testing.assert_close(alone[:, 0], together[:, 0])
    together = problem.bind(batch, "transductive").query_outputs(start)
    alone = problem.bind(single, "transductive").query_outputs(start)
    assert not torch.allclose(alone[:, 0], together[:, 0])


def test_norm_modes_that_differ() -> None:
    assert norm_modes(Initialization(network("group"))) == ("support",)
    assert norm_modes(Initialization(network())) == ("transductive", "support")


class OwnNorm(nn.BatchNorm1d):
    """A batch norm that the kernel does not convert."""


@pytest.mark.parametrize("backend", ["loop", "batched", "reference"])
def test_a_batch_norm_without_running_statistics_has_no_running_mode(backend: Backend) -> None:
    norm = OwnNorm(6, track_running_stats=False)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(256, 6), norm, nn.Linear(6, 3)).double()
    problem, batch = Initialization(layers, backend=backend), make_batch()
    assert norm_modes(problem) == ("transductive", "support")
    bound = problem.bind(batch, "running")
    with pytest.raises(ConfigurationError, match=r"without running .*track_running_stats=True"):
        bound.query_outputs(bound.bilevel.inner_init)


def test_losses_and_accuracies_leave_padding_out() -> None:
    batch = make_ragged_batch()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 3, generator=generator, dtype=torch.float64)
    logits[1, :, 2] += 50  # a class that the second task does not have
    losses = task_cross_entropy(logits, batch.query_y, batch.classes)
    accuracies = on_query(Accuracy(), logits, batch)
    for t, task in enumerate(single_tasks(batch)):
        rows = logits[t, batch.query_y[t] >= 0][:, : task.way]
        torch.testing.assert_close(losses[t], F.cross_entropy(rows, task.query_y[0]))
        right = (rows.argmax(1) == task.query_y[0]).double().mean()
        assert float(accuracies[t]) == pytest.approx(float(right))
