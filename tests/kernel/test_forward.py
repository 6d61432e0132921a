from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_same, make_batch
from torch import Tensor, nn

from fewshot_blo.bilevel import OuterStep, combine
from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import SGD, Adam, Backend, InnerSteps, TaskForward, adapt, for_tasks
from fewshot_blo.kernel.layers import fold, uniform_from_key
from fewshot_blo.problems import Initialization, SharedEncoder

KEYS = torch.tensor([5, 6, 7])


def dropout_network() -> nn.Sequential:
    layers = [nn.Flatten(), nn.Linear(256, 8), nn.Dropout(0.4), nn.Tanh(), nn.Dropout(0.4)]
    return nn.Sequential(*layers, nn.Linear(8, 3)).double()


def chunked(
    problem: Initialization | SharedEncoder, strategy: Strategy, size: int, keys: Tensor
) -> OuterStep:
    batch, steps = make_batch(), []
    for chunk, part in zip(batch.chunks(size), torch.split(keys, size), strict=True):
        bound = problem.bind(chunk, "support", part)
        step = strategy.hypergradient(bound.bilevel, strategy.init())
        steps.append(dataclasses.replace(step, gradient=bound.pullback(step.gradient)))
    return combine(steps)


@pytest.mark.parametrize(
    "strategy",
    [
        Unroll(InnerSteps(3, SGD())),
        Unroll(InnerSteps(3, SGD()), recompute=True),
        Implicit(InnerSteps(3, SGD()), ConjugateGradient(5)),
        Penalty(InnerSteps(3, Adam(1e-2, eps=1e-3)), rho=1e-2),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_dropout_does_not_depend_on_chunks_or_backend(strategy: Strategy, shared: bool) -> None:
    network = dropout_network()

    def problem(backend: Backend) -> Initialization | SharedEncoder:
        if shared:
            return SharedEncoder(network, backend=backend)
        return Initialization(network, prox=0.3, backend=backend)

    reference = chunked(problem("loop"), strategy, 1, KEYS)
    for backend, size in (("loop", 3), ("batched", 3), ("batched", 2)):
        step = chunked(problem(backend), strategy, size, KEYS)  # type: ignore[arg-type]
        assert_same({"F": step.outer_loss}, {"F": reference.outer_loss})
        assert_same(step.gradient, reference.gradient)
    other = chunked(problem("loop"), strategy, 3, KEYS + 1)
    assert not torch.allclose(other.outer_loss, reference.outer_loss)


def test_recomputed_dropout_equals_kept_dropout() -> None:
    problem = Initialization(dropout_network(), backend="batched")
    kept = chunked(problem, Unroll(InnerSteps(5, SGD())), 3, KEYS)
    again = chunked(problem, Unroll(InnerSteps(5, SGD()), recompute=True), 3, KEYS)
    assert_same(again.gradient, kept.gradient, 1e-14)


class Masks(nn.Module):
    """Returns the masks of its two dropout layers and records nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.stack([self.first(x), self.second(x)], 1)


@pytest.mark.parametrize("backend", ["batched", "loop"])
def test_masks_differ_over_tasks_steps_layers_and_images(
    backend: Literal["batched", "loop"],
) -> None:
    forward, seen = TaskForward(Masks(), backend), []

    def loss(v: dict[str, Tensor]) -> Tensor:
        masks = forward(v, {}, torch.ones(2, 3, 64), keys=KEYS[:2])
        seen.append(masks.detach())
        return masks.mean((1, 2, 3))

    adapt(loss, {"weight": torch.ones(2)}, InnerSteps(2, SGD(0.0)))
    masks = torch.stack(seen)  # [step, task, image, layer, 64]
    flat = masks.flatten(0, 3)
    assert torch.unique(flat, dim=0).shape[0] == flat.shape[0] == 2 * 2 * 3 * 2


def test_keys_by_whole_numbers_of_any_size() -> None:
    """The finaliser of MurmurHash3 (fmix64) modulo 2^64, in Python's integers."""

    def mixed(x: int) -> int:
        x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD % 2**64
        x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 % 2**64
        return x ^ x >> 33

    golden = 0x9E3779B97F4A7C15
    for key in (0, 3, -1, 2**62 + 5, -(2**63)):
        for number in (0, 1, 2, 3, 12345, 2**40):
            found = int(fold(torch.tensor(key), number)) % 2**64
            assert found == mixed((key + number * golden) % 2**64)
        bits = [mixed(mixed((key + i * golden) % 2**64)) >> 40 for i in range(6)]
        found_numbers = uniform_from_key(torch.tensor(key), (2, 3))
        assert found_numbers.flatten().tolist() == [b / 2**24 for b in bits]


def test_keys_give_uniform_numbers() -> None:
    numbers = torch.stack([uniform_from_key(fold(torch.tensor(3), n), (1000,)) for n in range(100)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=5e-3)
    assert float(numbers.var()) == pytest.approx(1 / 12, abs=2e-3)
    correlation = torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))
    assert abs(float(correlation[0, 1])) < 0.02
    counts = torch.histc(numbers, 20, 0, 1)
    assert ((counts / 5000 - 1).abs() < 0.08).all()


def test_parameters_may_be_shared_or_of_each_task() -> None:
    network = for_tasks(nn.Linear(4, 2))
    x = torch.randn(3, 5, 4)
    weight, bias = torch.randn(3, 2, 4), torch.randn(2)
    expected = torch.einsum("tbi,toi->tbo", x, weight) + bias
    for backend in ("batched", "loop"):
        out = TaskForward(network, backend)({"weight": weight}, {"bias": bias}, x)
        torch.testing.assert_close(out, expected)
        shared = {"weight": weight[0], "bias": bias}
        out = TaskForward(network, backend)({}, shared, x)
        torch.testing.assert_close(out, x @ weight[0].T + bias)


class Attends(nn.Module):
    """Attention over the rows of an image, by PyTorch's function or written out."""

    def __init__(self, *, written_out: bool) -> None:
        super().__init__()
        self.projection, self.last = nn.Linear(16, 24), nn.Linear(8, 3)
        self.written_out = written_out

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projection(x.flatten(1, 2)).unsqueeze(1).chunk(3, -1)
        if self.written_out:
            mixed = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        output: Tensor = self.last(mixed.mean((1, 2)))
        return output


@pytest.mark.parametrize("backend", ["loop", "batched"])
@pytest.mark.parametrize(
    "strategy",
    [
        Unroll(InnerSteps(3, SGD())),
        Unroll(InnerSteps(3, SGD()), recompute=True),
        Implicit(InnerSteps(3, SGD()), ConjugateGradient(5)),
    ],
)
def test_fused_attention_has_second_derivatives(strategy: Strategy, backend: Backend) -> None:
    def step(*, written_out: bool, backend: Backend) -> OuterStep:
        torch.manual_seed(0)
        network = Attends(written_out=written_out).double()
        return chunked(Initialization(network, prox=0.3, backend=backend), strategy, 3, KEYS)

    reference = step(written_out=True, backend="loop")
    found = step(written_out=False, backend=backend)
    assert_same({"F": found.outer_loss}, {"F": reference.outer_loss})
    assert_same(found.gradient, reference.gradient)
