"""The same meta-gradient as the libraries that the field has used."""

from __future__ import annotations

import copy
import warnings
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_same, make_batch
from torch import Tensor, nn

from fewshot_blo.hypergrad import Unroll
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.kernel.layers import TorchBatchNorm
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.problems import Initialization
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

STEPS, STEP_SIZE = 3, 0.1
BATCH = make_batch()


def import_higher() -> ModuleType:
    module: ModuleType = pytest.importorskip("higher")
    return module


def import_learn2learn() -> ModuleType:
    torchvision_module()  # learn2learn imports torchvision, whose extension may be unable to load
    with warnings.catch_warnings():
        # Of gym, pkg_resources and others that learn2learn imports; they are no concern of ours.
        warnings.simplefilter("ignore")
        module: ModuleType = pytest.importorskip("learn2learn")
    return module


def ours() -> Initialization:
    torch.manual_seed(0)
    return Initialization(classifier(Conv4(hidden=8), 8, 3).double(), backend="batched")


def theirs(problem: Initialization) -> nn.Module:
    """The same network and weights with PyTorch's batch norm, as users of the peers write it."""
    network = copy.deepcopy(problem.original)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, TorchBatchNorm):
                norm = nn.BatchNorm2d(8, track_running_stats=False).double()
                assert child.weight is not None
                assert child.bias is not None
                norm.weight, norm.bias = child.weight, child.bias
                setattr(module, name, norm)
    return network


def outer_gradient(problem: Initialization, strategy: Unroll) -> tuple[Tensor, dict[str, Tensor]]:
    step = strategy.hypergradient(problem.bind(BATCH, "transductive").bilevel, UnrollState())
    return step.outer_loss, dict(step.gradient)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """What the backward passes of all tasks left, as a mean over tasks."""
    found = {}
    for name, p in network.named_parameters():
        assert p.grad is not None
        found[name] = p.grad / BATCH.tasks
    return found


def test_equals_higher() -> None:
    higher = import_higher()
    problem = ours()
    network = theirs(problem)
    optimizer = torch.optim.SGD(network.parameters(), STEP_SIZE)
    losses = []
    for t in range(BATCH.tasks):
        with higher.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (fast, inner):
            for _ in range(STEPS):
                inner.step(F.cross_entropy(fast(BATCH.support_x[t]), BATCH.support_y[t]))
            loss = F.cross_entropy(fast(BATCH.query_x[t]), BATCH.query_y[t])
            torch.autograd.backward(loss)
            losses.append(loss.detach())
    outer_loss, gradient = outer_gradient(problem, Unroll(InnerSteps(STEPS, SGD(STEP_SIZE))))
    torch.testing.assert_close(outer_loss, torch.stack(losses), rtol=1e-8, atol=0)
    assert_same(gradient, gradients(network), 1e-8)


@pytest.mark.parametrize("first_order", [False, True])
def test_equals_learn2learn(first_order: bool) -> None:
    learn2learn = import_learn2learn()
    problem = ours()
    network = theirs(problem)
    maml = learn2learn.algorithms.MAML(network, lr=STEP_SIZE, first_order=first_order)
    losses = []
    for t in range(BATCH.tasks):
        learner = maml.clone()
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(learner(BATCH.support_x[t]), BATCH.support_y[t]))
        loss = F.cross_entropy(learner(BATCH.query_x[t]), BATCH.query_y[t])
        torch.autograd.backward(loss)
        losses.append(loss.detach())
    strategy = Unroll(InnerSteps(STEPS, SGD(STEP_SIZE)), first_order=first_order)
    outer_loss, gradient = outer_gradient(problem, strategy)
    torch.testing.assert_close(outer_loss, torch.stack(losses), rtol=1e-8, atol=0)
    assert_same(gradient, gradients(network), 1e-8)
