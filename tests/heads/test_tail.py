"""A tail of a user's own is compared with itself at the first batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from oracles import assert_same, make_batch
from torch import Tensor, nn

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import TailHead
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.networks import Conv4
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.training.step import hypergradient

STRATEGY = Unroll(InnerSteps(2, SGD(0.1)))


class Levels(nn.Module):
    """An embedding with padding, of which PyTorch's vmap gets the derivative wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 5, padding_idx=0)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        levels = (40 * x.abs()).long() % 4
        features: Tensor = self.last(x) * self.embedding(levels).tanh().mean(1)
        return features


def problem(**settings: Any) -> SharedEncoder:
    torch.manual_seed(0)
    tail, adapted = Levels().double(), ["embedding.weight", "last.bias"]
    head = TailHead(tail, adapted, features=5, **settings)
    return SharedEncoder(Conv4(hidden=8).double(), head, prox=0.5, backend="batched", prove=False)


def gradient(made: SharedEncoder) -> Params:
    return hypergradient(made, STRATEGY, STRATEGY.init(), make_batch()).gradient


@contextmanager
def told() -> Iterator[None]:
    with pytest.warns(UserWarning, match=r"Levels differs .* batched .*relative error .* of the"):
        yield


def test_a_tail_with_a_wrong_batching_rule_runs_task_by_task() -> None:
    made = problem()
    with told():
        made.prepare(make_batch())
    assert made.head.backend == "loop"  # type: ignore[attr-defined]
    assert_same(gradient(made), gradient(problem(backend="reference")))


def test_it_is_compared_on_features_as_well() -> None:
    made, batch = problem(), make_batch()
    x = made.network(batch.query_x.flatten(0, 1)).detach().unflatten(0, batch.query_x.shape[:2])
    with told():
        made.head.prepare(lambda: x, "second")


def test_a_backend_that_is_wrong_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="backend is batched, and Levels differs"):
        problem(backend="batched").prepare(make_batch())


def test_it_is_compared_once() -> None:
    made = problem()
    with told():
        made.prepare(make_batch())
    made.prepare(make_batch())
    made.on_features().head.prepare(lambda: torch.zeros(0), "first")


def test_nobody_compares_a_tail_that_needs_no_proof() -> None:
    made = problem(backend="batched", prove=False)
    made.prepare(make_batch())
    assert made.head.backend == "batched"  # type: ignore[attr-defined]


def test_a_backend_must_be_chosen() -> None:
    with pytest.raises(ConfigurationError, match="backend of the tail is not chosen yet"):
        gradient(problem())
