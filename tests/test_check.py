from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import make_batch
from small_runs import STRATEGIES
from torch import Tensor, nn

from fewshot_blo import check
from fewshot_blo.check import Comparison, check_kernel
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import convolution
from fewshot_blo.networks import classifier
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder


def own_network() -> nn.Module:
    """A network of a user's own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(4 * 49, 8),
        nn.LayerNorm(8),
    ).double()


def shared_encoder(backend: Any) -> FewShotProblem:
    return SharedEncoder(own_network(), backend=backend)


def initialization(backend: Any) -> FewShotProblem:
    return Initialization(classifier(own_network(), 8, 3).double(), prox=0.1, backend=backend)


@pytest.mark.parametrize("make", [shared_encoder, initialization])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("norm", ["transductive", "support"])
def test_a_network_of_a_users_own_agrees(make: Any, strategy: str, norm: Any) -> None:
    comparisons = check_kernel(make, STRATEGIES[strategy], make_batch(), norm=norm)
    assert len(comparisons) == 6
    assert comparisons[-1].quantity == f"{type(STRATEGIES[strategy]).__name__} hypergradient"
    assert all(comparison.agrees for comparison in comparisons), comparisons


class BackendDependent(nn.Module):
    """Adds what only the loop sees, as a layer with a defect under vmap would."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch._C._functorch.is_batchedtensor(x) else x * (1 + 1e-6 * x)


def test_a_difference_is_found() -> None:
    def make(backend: Any) -> FewShotProblem:
        encoder = nn.Sequential(own_network(), BackendDependent())
        return Initialization(classifier(encoder, 8, 3).double(), backend=backend)

    comparisons = check_kernel(make, Unroll(2), make_batch())
    assert not any(comparison.agrees for comparison in comparisons)


class Branching(nn.Module):
    """Python control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().sum()) > 0 else -x


def test_a_network_that_cannot_be_batched() -> None:
    def make(backend: Any) -> FewShotProblem:
        encoder = nn.Sequential(own_network(), Branching())
        return SharedEncoder(encoder, backend=backend)

    with pytest.raises(ConfigurationError, match=r"cannot be batched .*nothing to compare"):
        check_kernel(make, Unroll(2), make_batch())


def test_what_counts_as_rounding() -> None:
    assert Comparison("x", check.TOLERANCE).agrees
    assert not Comparison("x", 2 * check.TOLERANCE).agrees
    assert not Comparison("x", float("nan")).agrees


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop that the kernel is compared with shares none of its operations."""
    right = convolution.product

    def wrong(*arguments: Any) -> Tensor:
        result = right(*arguments)
        return result + 1e-6 * result.square()  # A factor would be lost in the batch norm.

    monkeypatch.setattr(convolution, "product", wrong)
    comparisons = check_kernel(initialization, Unroll(2), make_batch())
    assert not any(comparison.agrees for comparison in comparisons)
