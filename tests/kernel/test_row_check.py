"""Networks whose rows mix outside of batch norms: refused with padded tasks, and told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import make_batch, make_ragged_batch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.problems import Initialization, SharedEncoder
from fewshot_blo.problems.few_shot import norm_modes

MIXES = "mixes the rows of a batch outside of PyTorch's batch norm layers: .*in every norm mode"


class Standardised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / x.std(0)


class Attending(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ x.T, 1) @ x


class MeanOfOthers(nn.BatchNorm1d):
    """A batch norm whose own forward takes the batch's mean."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x.mean(0)


class OwnBatchNorm(nn.BatchNorm1d):
    """A batch norm that the kernel does not convert."""


def layers(middle: nn.Module) -> nn.Module:
    first = nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.Tanh())
    network = nn.Sequential(first, middle, nn.Tanh(), nn.Linear(6, 3))
    network.eval()(make_batch().support_x[0].float())
    return network.train().double()


MIXING: dict[str, Callable[[], nn.Module]] = {
    "standardised": Standardised,
    "attention over rows": Attending,
    "behind a batch norm": lambda: nn.Sequential(nn.BatchNorm1d(6), Attending()),
    "before a batch norm": lambda: nn.Sequential(Standardised(), nn.BatchNorm1d(6)),
    "a norm's own forward": lambda: MeanOfOthers(6),
}
APART: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(6),
    "without statistics": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "of a class of one's own": lambda: OwnBatchNorm(6, track_running_stats=False),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.AlphaDropout(0.3)),
    "layer norm": lambda: nn.LayerNorm(6),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", [Initialization, SharedEncoder])
@pytest.mark.parametrize("name", MIXING)
def test_rows_that_mix_are_told_once_and_refused_with_padding(
    name: str, kind: Any, backend: Any
) -> None:
    problem = kind(layers(MIXING[name]()), backend=backend)
    with pytest.warns(UserWarning, match=MIXES):
        problem.prepare(make_batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem.prepare(make_batch())
    assert norm_modes(problem)[0] == "transductive"
    problem.bind(make_batch(), "support")
    with pytest.raises(ConfigurationError, match=r"tasks of this batch are padded: .* each size"):
        problem.bind(make_ragged_batch(), "transductive")


@pytest.mark.filterwarnings("ignore:.*mixes the rows of a batch")
def test_a_first_batch_with_padding_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="tasks of this batch are padded"):
        Initialization(layers(Standardised())).prepare(make_ragged_batch())
    with pytest.raises(ConfigurationError, match="slices is 9, but the network mixes the rows"):
        SharedEncoder(layers(Standardised()), slices=9).prepare(make_batch())


@pytest.mark.parametrize("name", APART)
def test_batch_norms_and_dropout_do_not_count(name: str) -> None:
    problem = Initialization(layers(APART[name]()))
    problem.prepare(make_ragged_batch())
    assert not problem.rows_mix
