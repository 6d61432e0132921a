"""Inner steps on mini-batches of the support sets."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from oracles import make_ragged_batch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Reptile, Unroll
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.problems import Initialization
from fewshot_blo.tasks import TaskBatch

TASKS, WAY, SHOT = 2, 3, 4
STEPS = 5


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, WAY)).double()


def tasks() -> TaskBatch:
    support, query = torch.randn(2, TASKS, WAY * SHOT, 1, 1, 5, dtype=torch.float64)
    labels = torch.arange(WAY).repeat_interleave(SHOT).expand(TASKS, -1)
    return TaskBatch(support, labels, query, labels, torch.arange(WAY).expand(TASKS, -1))


def adapted(module: nn.Module, x: Tensor, y: Tensor, parts: list[list[int]]) -> nn.Module:
    """A plain loop over mini-batches with PyTorch's Adam."""
    own = copy.deepcopy(module)
    optimizer = torch.optim.Adam(own.parameters(), lr=0.01, betas=(0.0, 0.999))
    for step in range(STEPS):
        rows = parts[step % len(parts)]
        optimizer.zero_grad()
        F.cross_entropy(own(x[rows]), y[rows]).backward()
        optimizer.step()
    return own


@pytest.mark.parametrize(
    ("examples", "parts"),
    [
        (6, [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]),
        (5, [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]),
        (12, [list(range(12))]),
        (0, [list(range(12))]),
    ],
)
def test_reptile_equals_a_plain_loop_over_mini_batches(
    examples: int, parts: list[list[int]]
) -> None:
    module, batch = network(), tasks()
    problem = Initialization(module, inner_batch=examples, backend="batched")
    rule = Adam(0.01, beta1=0.0, eps_root=0.0)
    strategy = Reptile(InnerSteps(STEPS, rule), query_weight=0.0)
    found = strategy.hypergradient(problem.bind(batch, "transductive").bilevel, strategy.init())
    ends = [
        dict(adapted(module, batch.support_x[t], batch.support_y[t], parts).named_parameters())
        for t in range(TASKS)
    ]
    for name, start in module.named_parameters():
        expected = start.detach() - torch.stack([end[name].detach() for end in ends]).mean(0)
        torch.testing.assert_close(found.gradient[name], expected, rtol=1e-9, atol=1e-12)


def test_unrolling_differentiates_the_mini_batches() -> None:
    batch = tasks()
    problem = Initialization(network(), inner_batch=6, backend="batched")
    strategy = Unroll(InnerSteps(3, SGD(0.3)))
    bilevel = problem.bind(batch, "transductive").bilevel
    gradient = strategy.hypergradient(bilevel, strategy.init()).gradient["3.bias"]

    def loss(bias: Tensor) -> Tensor:
        start = {n: p.detach() for n, p in problem.outer.items()} | {"3.bias": bias}
        total = bias.new_zeros(())
        for t in range(TASKS):
            v = {n: p.clone().requires_grad_() for n, p in start.items()}
            for step in range(3):
                x, y = batch.support_x[t, step % 2 :: 2], batch.support_y[t, step % 2 :: 2]
                own = F.cross_entropy(torch.func.functional_call(network_, v, (x,)), y)
                gradients = torch.autograd.grad(own, list(v.values()))
                v = {
                    n: (p - 0.3 * g).detach().requires_grad_()
                    for (n, p), g in zip(v.items(), gradients, strict=True)
                }
            outputs = torch.func.functional_call(network_, v, (batch.query_x[t],))
            total = total + F.cross_entropy(outputs, batch.query_y[t]).detach() / TASKS
        return total

    network_, bias = network(), problem.outer["3.bias"].detach()
    for entry in range(WAY):
        step = torch.zeros_like(bias)
        step[entry] = 1e-5
        difference = (loss(bias + step) - loss(bias - step)) / 2e-5
        torch.testing.assert_close(gradient[entry], difference, rtol=1e-6, atol=1e-9)


def test_after_the_last_step_the_loss_is_of_all_examples() -> None:
    batch, module = tasks(), network()
    some, all_ = (Initialization(module, inner_batch=n, backend="batched") for n in (6, 0))
    losses = []
    for problem in (some, all_):
        bilevel = problem.bind(batch, "transductive").bilevel
        losses.append(bilevel.inner_loss(bilevel.inner_init))
    assert torch.equal(*losses)


def test_tasks_of_several_sizes_are_refused() -> None:
    problem = Initialization(network(), inner_batch=2, backend="batched")
    with pytest.raises(ConfigurationError, match="inner_batch is 2, and the tasks differ"):
        problem.bind(make_ragged_batch(), "transductive")
