from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import (
    assert_same,
    directional_difference,
    dot,
    make_batch,
    plain_initialization,
    plain_network,
    plain_unroll,
    random_direction,
    single_tasks,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import SGD, Backend, InnerSteps, Momentum, TaskForward, adapt
from fewshot_blo.kernel.adapt import Derivatives, inner_step
from fewshot_blo.machine.memory import peak_bytes
from fewshot_blo.networks import Conv4, Norm, classifier
from fewshot_blo.problems import Initialization
from fewshot_blo.tasks import TaskBatch


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance", "none"])
def test_equals_a_plain_loop(norm: Norm, first_order: bool) -> None:
    network = classifier(Conv4(hidden=8, norm=norm), 8, 3).double()
    batch = make_batch()
    problem = Initialization(network, prox=0.2)
    plain = plain_network(problem.network)
    tasks = [
        plain_initialization(
            plain, problem.outer, task, "support", prox=0.2, adapted=problem.adapted
        )
        for task in single_tasks(batch)
    ]
    losses, gradient = plain_unroll(tasks, 3, 0.1, first_order=first_order)
    for backend in ("batched", "loop"):
        problem.backend = backend
        strategy = Unroll(InnerSteps(3, SGD(0.1)), first_order=first_order)
        step = strategy.hypergradient(problem.bind(batch, "support").bilevel, UnrollState())
        assert_same({"F": step.outer_loss}, {"F": losses})
        assert_same(step.gradient, gradient)


def batch_norm_network() -> nn.Sequential:
    """Smooth, so that finite differences tell which of two gradients is right."""
    torch.manual_seed(1)
    layers = [
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8, track_running_stats=False),
        nn.Tanh(),
        nn.Linear(8, 3),
    ]
    return nn.Sequential(*layers).double()


def test_naive_composition_is_wrong_with_batch_norm_where_the_kernel_is_right() -> None:
    """Why the kernel differentiates outside vmap: PyTorch's batched backward of batch norm treats
    the saved statistics as constants, so ``vmap(grad(loss))`` drops second-order terms."""
    network, batch = batch_norm_network(), make_batch(size=4)
    theta = {n: p.detach().requires_grad_() for n, p in network.named_parameters()}

    def task_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, dict(params), (x,)), y)

    def naive(theta: Params) -> Tensor:
        def task(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
            params = dict(theta)
            for _ in range(3):
                gradients = grad(task_loss)(params, x, y)
                params = {n: p - 0.5 * gradients[n] for n, p in params.items()}
            return task_loss(params, query_x, query_y)

        losses = vmap(task)(batch.support_x, batch.support_y, batch.query_x, batch.query_y)
        mean: Tensor = losses.mean()
        return mean

    def kernel(theta: Params) -> Tensor:
        forward = TaskForward(network, "batched")

        def loss(params: TaskParams, x: Tensor, y: Tensor) -> Tensor:
            logits = forward(params, {}, x).flatten(0, 1)
            return F.cross_entropy(logits, y.flatten(), reduction="none").reshape(y.shape).mean(1)

        start = {n: p.expand(3, *p.shape) for n, p in theta.items()}
        adapted = adapt(
            lambda v: loss(v, batch.support_x, batch.support_y),
            start,
            InnerSteps(3, SGD(0.5)),
            derivatives="second",
        )
        return loss(adapted, batch.query_x, batch.query_y).mean()

    direction = random_direction(theta)
    numeric = directional_difference(naive, theta, direction)
    assert float(kernel(theta).detach()) == pytest.approx(float(naive(theta).detach()), rel=1e-12)
    right, wrong = (
        dict(zip(theta, torch.autograd.grad(f(theta), list(theta.values())), strict=True))
        for f in (kernel, naive)
    )
    assert dot(right, direction) == pytest.approx(numeric, rel=1e-7)
    assert abs(dot(wrong, direction) / numeric - 1) > 1e-4


def squares(v: TaskParams) -> Tensor:
    return v["v"].square().sum(1)


@pytest.mark.parametrize("derivatives", ["none", "first", "second"])
def test_graph_is_as_asked(derivatives: Derivatives) -> None:
    v = torch.ones(2, 3, requires_grad=True)
    out = adapt(squares, {"v": v}, InnerSteps(2, SGD(0.25)), derivatives=derivatives)["v"]
    torch.testing.assert_close(out.detach(), torch.full((2, 3), 0.25))
    assert out.requires_grad == (derivatives != "none")
    if derivatives != "none":
        (slope,) = torch.autograd.grad(out.sum(), v)
        torch.testing.assert_close(
            slope, torch.full((2, 3), 1.0 if derivatives == "first" else 0.25)
        )


def test_adapts_without_gradients_under_no_grad() -> None:
    with torch.no_grad():
        out = adapt(squares, {"v": torch.ones(1, 2)}, InnerSteps(1, SGD(0.25)))["v"]
    torch.testing.assert_close(out, torch.full((1, 2), 0.5))


def test_leaves_the_start_as_it_was() -> None:
    v = torch.ones(2, 3)
    for steps in (0, 2):
        adapt(squares, {"v": v}, InnerSteps(steps, Momentum()))
        assert not v.requires_grad
        assert (v == 1).all()


def test_parameter_without_influence_stays() -> None:
    params = {"v": torch.ones(2, 3), "idle": torch.ones(2)}
    out = adapt(squares, params, InnerSteps(2, SGD(0.25)), derivatives="second")
    assert (out["idle"] == 1).all()


@pytest.mark.parametrize("recompute", [False, True])
def test_loss_knows_the_number_of_the_step(recompute: bool) -> None:
    u = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)

    def loss(v: TaskParams) -> Tensor:
        step = inner_step()
        assert step is not None
        return (v["v"] * u).sum(1) * 10.0**step

    start = {"v": torch.zeros(1, 1, dtype=torch.float64)}
    settings: Any = {"outer": {"u": u}, "recompute": recompute}
    out = adapt(loss, start, InnerSteps(5, SGD(1.0)), derivatives="second", **settings)["v"]
    assert float(out.detach()) == -11111
    assert float(torch.autograd.grad(out.sum(), u)[0]) == -11111
    assert inner_step() is None


def test_recomputed_steps_draw_the_same_random_numbers() -> None:
    u = torch.ones(1, 4, dtype=torch.float64, requires_grad=True)

    def loss(v: TaskParams) -> Tensor:
        return ((v["v"] - u).square() * F.dropout(torch.ones_like(u), 0.5)).sum(1)

    results = []
    for recompute in (False, True):
        torch.manual_seed(3)
        out = adapt(
            loss,
            {"v": torch.zeros(1, 4, dtype=torch.float64)},
            InnerSteps(7, SGD(0.1)),
            outer={"u": u},
            derivatives="second",
            recompute=recompute,
        )["v"]
        after = torch.rand(1)
        results.append((out.detach(), torch.autograd.grad(out.sum(), u)[0], after))
    for kept, again in zip(*results, strict=True):
        assert torch.equal(kept, again)


def conv4_peak(steps: int, *, recompute: bool | None) -> int:
    """Peak bytes of an outer step on Conv4: 5-way 1-shot, 5 queries of 28x28."""
    problem = Initialization(classifier(Conv4(hidden=16), 16, 5), backend="loop")
    one = make_batch(1, 5, 1, 5, size=28).to("cpu", torch.float32)
    bilevel = problem.bind(one, "transductive").bilevel
    strategy = Unroll(InnerSteps(steps, SGD(0.01)), recompute=recompute)
    return peak_bytes(lambda: strategy.hypergradient(bilevel, UnrollState()))


@pytest.mark.slow
def test_no_number_of_steps_takes_more_memory_than_five() -> None:
    five = conv4_peak(5, recompute=None)
    assert conv4_peak(10, recompute=False) > 1.3 * five
    assert conv4_peak(6, recompute=None) < five
    assert conv4_peak(40, recompute=None) < five


@pytest.mark.slow
def test_segments_keep_memory_flat_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewshot_blo.kernel.recompute._STATES", 0)
    assert conv4_peak(30, recompute=True) < 1.1 * conv4_peak(5, recompute=True)


@pytest.mark.parametrize("derivatives", ["none", "second"])
def test_without_derivatives_memory_is_flat_in_steps(derivatives: Derivatives) -> None:
    network = batch_norm_network()
    forward = TaskForward(network, "batched")
    batch: TaskBatch = make_batch(size=4)
    params = {n: p.detach().expand(3, *p.shape) for n, p in network.named_parameters()}

    def loss(v: TaskParams) -> Tensor:
        return forward(v, {}, batch.support_x).square().mean((1, 2))

    few, many = (
        peak_bytes(lambda n=n: adapt(loss, params, InnerSteps(n, SGD()), derivatives=derivatives))  # type: ignore[misc]
        for n in (3, 30)
    )
    assert (many == few) if derivatives == "none" else (many > 3 * few)


@pytest.mark.parametrize("backend", ["batched", "loop"])
def test_scalar_parameters_adapt(backend: Backend) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x.flatten(1)[:, :3]

    problem = Initialization(Scaled(), prox=0.1, backend=backend)
    bilevel = problem.bind(make_batch(), "support").bilevel
    step = Unroll(InnerSteps(2, SGD())).hypergradient(bilevel, UnrollState())
    assert step.inner["scale"].shape == (3,)
    assert step.gradient["scale"].shape == ()
