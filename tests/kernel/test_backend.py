from __future__ import annotations

import warnings

import pytest
import torch
from oracles import assert_same, make_batch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError, StructuralZeroError
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import SGD, Choice, InnerSteps, Sample, for_tasks
from fewshot_blo.kernel import backend as module
from fewshot_blo.kernel.forward import TaskForward
from fewshot_blo.problems import Initialization, SharedEncoder


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.flatten(1))
        return out if out.sum().item() > 0 else 2 * out


class Recurrent(nn.Module):
    """A layer that vmap has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x.squeeze(1))[0][:, -1]
        return out


@pytest.mark.filterwarnings("ignore:Branching mixes the rows of a batch")
@pytest.mark.parametrize(
    ("network", "reason"), [(Branching(), r"\.item\(\)"), (Recurrent(), "lstm")]
)
def test_falls_back_to_the_loop_and_says_why(network: nn.Module, reason: str) -> None:
    name, batch = type(network).__name__, make_batch()
    problem = Initialization(network.double())
    with pytest.warns(UserWarning, match=f"{name} cannot be batched over tasks.*{reason}"):
        problem.prepare(batch)
    assert problem.backend == "loop"
    together = Unroll(InnerSteps(2, SGD())).hypergradient(
        problem.bind(batch, "support").bilevel, UnrollState()
    )
    alone = [
        Unroll(InnerSteps(2, SGD())).hypergradient(
            problem.bind(batch[t : t + 1], "support").bilevel, UnrollState()
        )
        for t in range(3)
    ]
    assert_same(together.inner, {n: torch.cat([s.inner[n] for s in alone]) for n in together.inner})


@pytest.mark.parametrize(
    ("loop", "chosen"), [(0.5, "loop"), (0.75, "loop"), (0.85, "batched"), (2.0, "batched")]
)
def test_picks_the_loop_where_it_is_clearly_faster(
    loop: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(forward: TaskForward, sample: Sample) -> float:
        return loop if forward.backend == "loop" else 1.0

    monkeypatch.setattr(module, "_seconds", seconds)
    network = nn.Linear(2, 2)
    sample = Sample({}, {}, torch.ones(1, 1, 2), torch.zeros(1, dtype=torch.int64), "first")
    assert Choice(network, for_tasks(network))("auto", sample) == chosen


def test_a_network_that_fails_anyway_shows_its_own_error() -> None:
    problem = Initialization(nn.Sequential(nn.Flatten(), nn.Linear(99, 3)).double())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            problem.prepare(make_batch())


def test_measures_both_problems_and_a_frozen_encoder() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(256, 4)).double()
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(256, 4)).double().requires_grad_(False)
    for problem in (
        Initialization(encoder),
        SharedEncoder(encoder),
        SharedEncoder(frozen, learn_prox=True),
    ):
        with pytest.raises(ConfigurationError, match="prepare"):
            problem.bind(make_batch(), "support")
        problem.prepare(make_batch())
        assert problem.backend in ("batched", "loop")


class Spare(nn.Module):
    """With a layer that its features do not use, as a pretrained network's classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.classifier = nn.Linear(256, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.flatten(1))
        return out


def test_a_layer_that_the_encoder_does_not_use() -> None:
    """Its hypergradient is zero, and that of the others what it is without that layer."""
    torch.manual_seed(0)
    network = Spare().double()
    found = []
    for encoder in (network, nn.Sequential(nn.Flatten(), network.linear)):
        problem, batch = SharedEncoder(encoder), make_batch()
        problem.prepare(batch)
        bound = problem.bind(batch, "support")
        step = Unroll(InnerSteps(2, SGD())).hypergradient(bound.bilevel, UnrollState())
        found.append(dict(bound.pullback(step.gradient)))
    spare, alone = found
    assert not any(spare.pop(f"classifier.{name}").any() for name in ("weight", "bias"))
    assert_same(dict(zip(alone, spare.values(), strict=True)), alone)


def test_a_layer_that_an_initialization_does_not_use_is_named() -> None:
    problem = Initialization(Spare().double())
    problem.prepare(make_batch())
    bound = problem.bind(make_batch(), "support")
    with pytest.raises(StructuralZeroError, match=r"'classifier\.weight'.*freeze it"):
        Unroll(InnerSteps(2, SGD())).hypergradient(bound.bilevel, UnrollState())
