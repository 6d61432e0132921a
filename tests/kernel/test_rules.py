from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from oracles import assert_same
from torch import Tensor, nn

from fewshot_blo.bilevel import TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel import SGD, Adam, InnerSteps, LearnedSGD, Momentum, UpdateRule, adapt


def loss(v: TaskParams) -> Tensor:
    """A curved loss with gradients of very different sizes."""
    scales = torch.tensor([1e-3, 1.0, 30.0], dtype=torch.float64)
    return (v["a"].cos() * scales).sum(1) + (v["b"] ** 4).sum(1) + v["a"].sum(1) * v["b"].sum(1)


def start() -> TaskParams:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (2, 3), "b": (2, 1)}
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (SGD(0.02), lambda p: torch.optim.SGD(p, 0.02)),
        (Momentum(0.02, 0.8), lambda p: torch.optim.SGD(p, 0.02, momentum=0.8)),
        (Adam(0.02), lambda p: torch.optim.Adam(p, 0.02)),
        (Adam(0.02, 0.5, 0.7, 1e-2), lambda p: torch.optim.Adam(p, 0.02, (0.5, 0.7), 1e-2)),
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_equals_torch_optim(rule: UpdateRule, optimizer, steps: int) -> None:  # type: ignore[no-untyped-def]
    leaves: TaskParams = {n: nn.Parameter(p.clone()) for n, p in start().items()}
    reference = optimizer(list(leaves.values()))
    for _ in range(steps):
        reference.zero_grad()
        torch.autograd.backward(loss(leaves).sum())
        reference.step()
    adapted = adapt(loss, start(), InnerSteps(steps, rule))
    assert_same(adapted, {n: p.detach() for n, p in leaves.items()}, 1e-9)


def test_defaults() -> None:
    """Step sizes of their own; the rest is as in PyTorch."""
    assert SGD() == SGD(0.1)
    assert Momentum() == Momentum(0.1, 0.9)
    torchs = torch.optim.Adam([nn.Parameter(torch.zeros(1))]).defaults
    first, second = torchs["betas"]
    assert Adam() == Adam(1e-2, first, second, torchs["eps"], 1e-16)


@pytest.mark.parametrize("rule", [SGD(), Momentum(), Adam(), LearnedSGD()], ids=repr)
def test_rules_are_values(rule: Any) -> None:
    """They serve as defaults of strategies, and so must not change."""
    assert hash(rule) == hash(replace(rule))
    with pytest.raises(FrozenInstanceError):
        rule.step_size = 1.0


def test_learned_step_sizes_are_used_and_differentiated() -> None:
    sizes = {
        "step_size/a": torch.tensor(0.02, dtype=torch.float64, requires_grad=True),
        "step_size/b": torch.full((1,), 0.01, dtype=torch.float64, requires_grad=True),
    }
    leaves = {n: p.requires_grad_() for n, p in start().items()}
    gradients = torch.autograd.grad(loss(leaves).sum(), list(leaves.values()))
    adapted = adapt(loss, start(), InnerSteps(1, LearnedSGD()), outer=sizes, derivatives="first")
    expected = {
        n: (p - size * g).detach()
        for (n, p), size, g in zip(leaves.items(), (0.02, 0.01), gradients, strict=True)
    }
    assert_same({n: p.detach() for n, p in adapted.items()}, expected)
    slopes = torch.autograd.grad(adapted["a"].sum() + adapted["b"].sum(), list(sizes.values()))
    for slope, g in zip(slopes, gradients, strict=True):
        assert float(slope) == pytest.approx(-float(g.sum()))


def test_step_sizes_of_each_inner_step() -> None:
    """The last one serves for further steps."""
    sizes = {n: torch.tensor([0.02, 0.01], dtype=torch.float64) for n in ("a", "b")}
    outer = {"step_size/" + name: size for name, size in sizes.items()}
    adapted = adapt(loss, start(), InnerSteps(4, LearnedSGD(per_step=True)), outer=outer)
    expected = start()
    for size in (0.02, 0.01, 0.01, 0.01):
        expected = adapt(loss, expected, InnerSteps(1, SGD(size)))
    assert_same(adapted, expected)


def test_step_sizes_of_each_entry() -> None:
    sizes = {n: 0.01 * torch.rand_like(p[0]) for n, p in start().items()}
    outer = {"step_size/" + name: size for name, size in sizes.items()}
    leaves = {n: p.requires_grad_() for n, p in start().items()}
    gradients = torch.autograd.grad(loss(leaves).sum(), list(leaves.values()))
    adapted = adapt(loss, start(), InnerSteps(1, LearnedSGD()), outer=outer)
    expected = {
        n: (p - sizes[n] * g).detach() for (n, p), g in zip(leaves.items(), gradients, strict=True)
    }
    assert_same(adapted, expected)


def test_learned_step_sizes_must_be_outer_variables() -> None:
    with pytest.raises(ConfigurationError, match=r"'a' has no learned step size.*step_size/a"):
        adapt(loss, start(), InnerSteps(1, LearnedSGD()))


@pytest.mark.parametrize("rule", [SGD(), Momentum(), Adam()])
def test_zero_gradients_have_finite_derivatives(rule: UpdateRule) -> None:
    """Dead units: a loss whose gradient is zero, exactly, for some parameters."""
    u = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def partly_dead(v: TaskParams) -> Tensor:
        return (v["v"].relu() * u).square().sum(1)

    params = {"v": torch.tensor([[-1.0, 0.0, 2.0]], dtype=torch.float64)}
    adapted = adapt(partly_dead, params, InnerSteps(3, rule), derivatives="second")
    (slope,) = torch.autograd.grad(adapted["v"].sum(), u)
    assert slope.isfinite().all()
    assert adapted["v"][0, :2].tolist() == [-1.0, 0.0]


@pytest.mark.parametrize(
    ("per_step", "shape"),
    [(False, (3, 4)), (False, (2,)), (True, ()), (True, (4, 3)), (True, (4, 2))],
)
def test_step_sizes_of_another_layout_are_refused(per_step: bool, shape: tuple[int, ...]) -> None:
    """They would be broadcast along other axes."""
    params = {"w": torch.zeros(5, 4, 3)}
    rule = LearnedSGD(per_step=per_step)
    for good in ((), (4, 3)):
        rule.init(params, {"step_size/w": torch.ones(((2, *good)) if per_step else good)})
    with pytest.raises(ConfigurationError, match=r"'w' have shape .*per_step"):
        rule.init(params, {"step_size/w": torch.ones(shape)})
