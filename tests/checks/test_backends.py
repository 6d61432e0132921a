from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import make_batch
from small_runs import STRATEGIES
from torch import Tensor, nn

from fewshot_blo.checks import backends as check
from fewshot_blo.checks.backends import Comparison, check_kernel
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.kernel.stacked import convolution, convolution_choice
from fewshot_blo.networks import classifier
from fewshot_blo.problems import FewShotProblem, Initialization, NormMode, SharedEncoder


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


@pytest.mark.sampled(4)
@pytest.mark.parametrize("make", [shared_encoder, initialization])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_network_of_a_users_own_agrees(make: Any, strategy: str) -> None:
    """By every strategy that suits the problem, in both norm modes and by both backends."""
    norms: tuple[NormMode, ...] = ("transductive", "support")
    comparisons = check_kernel(make, STRATEGIES[strategy], make_batch(), norms=norms)
    assert comparisons[-1].quantity == f"{type(STRATEGIES[strategy]).__name__} as set"
    kinds = {(c.norm, c.backend) for c in comparisons}
    assert len(kinds) == 4
    names = {c.quantity for c in comparisons}
    assert {"second-order gradient", "penalty hypergradient", "BOME hypergradient"} <= names
    assert all(comparison.agrees for comparison in comparisons), comparisons


class BackendDependent(nn.Module):
    """Adds what only the loop sees, as a layer with a defect under vmap would."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch._C._functorch.is_batchedtensor(x) else x * (1 + 1e-6 * x)


def by_backend(comparisons: list[Comparison], backend: str) -> list[Comparison]:
    return [comparison for comparison in comparisons if comparison.backend == backend]


@pytest.mark.slow
def test_a_difference_is_found() -> None:
    def make(backend: Any) -> FewShotProblem:
        encoder = nn.Sequential(own_network(), BackendDependent())
        return Initialization(classifier(encoder, 8, 3).double(), backend=backend)

    comparisons = check_kernel(make, Unroll(InnerSteps(2, SGD())), make_batch())
    assert not any(comparison.agrees for comparison in by_backend(comparisons, "batched"))
    assert all(comparison.agrees for comparison in by_backend(comparisons, "loop"))


class Branching(nn.Module):
    """Python control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().square().sum()) > 0 else -x


def test_a_network_that_cannot_be_batched() -> None:
    def make(backend: Any) -> FewShotProblem:
        encoder = nn.Sequential(own_network(), Branching())
        return SharedEncoder(encoder, backend=backend)

    comparisons = check_kernel(make, Unroll(InnerSteps(2, SGD())), make_batch())
    assert all(comparison.agrees for comparison in by_backend(comparisons, "loop"))
    for comparison in by_backend(comparisons, "batched"):
        assert not comparison.agrees
        assert ".item()" in comparison.reason


def test_what_counts_as_rounding() -> None:
    def agrees(difference: float) -> bool:
        return Comparison("x", "support", "loop", difference).agrees

    assert agrees(check.TOLERANCE)
    assert not agrees(2 * check.TOLERANCE)
    assert not agrees(float("nan"))


@pytest.mark.slow
def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop that the kernel is compared with shares none of its operations."""
    right = convolution_choice.product

    def wrong(*arguments: Any) -> Tensor:
        result = right(*arguments)
        return result + 1e-6 * result.square()  # A factor would be lost in the batch norm.

    monkeypatch.setattr(convolution, "product", wrong)
    comparisons = check_kernel(initialization, Unroll(InnerSteps(2, SGD())), make_batch())
    assert not any(comparison.agrees for comparison in comparisons)


class Activated(nn.BatchNorm2d):
    """A batch norm that does more, as timm's BatchNormAct2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def test_a_layer_that_is_replaced_by_another_is_found() -> None:
    """The kernel is compared with the user's module, and not with its own copy of it."""

    def make(backend: Any) -> FewShotProblem:
        encoder = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), Activated(4), nn.Flatten()).double()
        problem = SharedEncoder(encoder, backend=backend)
        problem.network.get_submodule("1").__class__ = nn.BatchNorm2d
        return problem

    comparisons = check_kernel(make, Unroll(InnerSteps(2, SGD())), make_batch())
    assert not any(comparison.agrees for comparison in comparisons)
