"""The same outer step as users of ``higher`` and learn2learn write it: a loop over tasks."""

from __future__ import annotations

import importlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import peer_losses
import torch
import torch.nn.functional as F
from grid import Cell
from ours import STEP_SIZE, Step, Weights
from torch import Tensor, nn

from fewshot_blo.kernel import BatchNorm
from fewshot_blo.kernel.precision import product_precision
from tasks import TaskBatch

Task = tuple[Tensor, Tensor, Tensor, Tensor]
Cast = Callable[[], AbstractContextManager[Any]]
TaskGradient = Callable[[Task], None]
"""Adds the gradient of one task to the parameters' ``grad``."""

HIGHER, CACHED, LEARN2LEARN = "higher", "higher, features cached", "learn2learn"


def contenders(cell: Cell) -> list[str]:
    """The peers that can do what the cell asks for."""
    names = [HIGHER]
    if cell.adapted == "head":
        names.append(CACHED)
    if cell.method in ("second", "first"):
        names.append(LEARN2LEARN)
    return names


def import_peer(name: str) -> ModuleType:
    """The library behind a contender.

    Raises:
        ImportError: if it is not installed.
    """
    with warnings.catch_warnings():
        # Of gym, pkg_resources and others that learn2learn imports.
        warnings.simplefilter("ignore")
        if name != LEARN2LEARN:
            return importlib.import_module("higher")
        importlib.import_module("tasks.torchvision_import").torchvision_module()
        return importlib.import_module("learn2learn")


def build(name: str, cell: Cell, weights: Weights, batch: TaskBatch) -> Step:
    """The peer's outer step on a batch.

    Raises:
        ImportError: if the peer is not installed.
    """
    library = import_peer(name)
    network = plain_network(cell, weights, batch)
    device, dtype = batch.support_x.device, batch.support_x.dtype

    def cast() -> AbstractContextManager[Any]:
        if cell.precision == "bfloat16" and dtype == torch.float32:
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()

    if name == LEARN2LEARN:
        add_gradient = _learn2learn(library, cell, network, cast)
    elif cell.method in ("second", "first"):
        add_gradient = _higher(library, cell, network, cast, cached=name == CACHED)
    else:
        add_gradient = peer_losses.higher(library, cell, network, cast, cached=name == CACHED)

    def step() -> Weights:
        network.zero_grad()
        with product_precision(cell.precision, device):
            for task in tasks(batch):
                add_gradient(task)
        return {
            outer_name(parameter, cell): p.grad / batch.tasks
            for parameter, p in network.named_parameters()
            if p.grad is not None
        }

    return step


def plain_network(cell: Cell, weights: Weights, batch: TaskBatch) -> nn.Sequential:
    """Encoder and linear head, of PyTorch's own layers alone, with the given weights."""
    encoder, features = cell.encoder()
    _replace_norms(encoder)
    if cell.adapted == "head":
        encoder = nn.Sequential(OrderedDict(body=encoder, scale=Scale(features**-0.5)))
    head = nn.Linear(features, cell.way)
    network = nn.Sequential(OrderedDict(encoder=encoder, head=head)).to(batch.support_x)
    network.load_state_dict({n: weights[outer_name(n, cell)] for n in network.state_dict()})
    return network


def outer_name(parameter: str, cell: Cell) -> str:
    """What this project's problem calls a parameter of the plain network."""
    if cell.adapted == "all":
        return parameter
    name = parameter.removeprefix("encoder.body.")
    return f"start/{name}" if name.startswith("head.") else name


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        return self.factor * x


def _replace_norms(network: nn.Module) -> None:
    """Exchanges the project's batch norm for PyTorch's, which takes the batch's statistics."""
    for name, child in network.named_children():
        if isinstance(child, BatchNorm):
            norm = nn.BatchNorm2d(len(child.running_mean), child.eps, track_running_stats=False)
            setattr(network, name, norm)
        elif not any(True for _ in child.children()):
            assert type(child).__module__.startswith("torch.nn."), f"{child} is not PyTorch's"
        _replace_norms(child)


def tasks(batch: TaskBatch) -> Iterator[Task]:
    """Support images and labels, query images and labels of each task."""
    return zip(batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True)


def _higher(
    higher: ModuleType, cell: Cell, network: nn.Sequential, cast: Cast, *, cached: bool
) -> TaskGradient:
    """Unrolling; first order takes the gradient at the adapted weights for that of the initial."""
    second_order = cell.method == "second"
    encoder, head = network.get_submodule("encoder"), network.get_submodule("head")
    model = head if cached else network
    adapted = network if cell.adapted == "all" else head
    optimizer = torch.optim.SGD(adapted.parameters(), STEP_SIZE)
    leaves = [*encoder.parameters(), *head.parameters()]

    def add_gradient(task: Task) -> None:
        support_x, support_y, query_x, query_y = task
        if cached:
            with cast():
                support_x, query_x = encoder(support_x), encoder(query_x)
            support_x = support_x if second_order else support_x.detach()
        with higher.innerloop_ctx(
            model, optimizer, copy_initial_weights=False, track_higher_grads=second_order
        ) as (fast, inner):
            task = support_x, support_y, query_x, query_y
            loss = _adapted_loss(fast, inner.step, task, cell.steps, cast)
            if second_order:
                torch.autograd.backward(loss)
                return
            at = [*encoder.parameters(), *fast.parameters()] if cached else fast.parameters()
            accumulate(leaves, torch.autograd.grad(loss, list(at)))

    return add_gradient


def _learn2learn(
    learn2learn: ModuleType, cell: Cell, network: nn.Sequential, cast: Cast
) -> TaskGradient:
    """MAML, or ANIL as its example has it: the head adapts to features computed once."""
    first_order = cell.method == "first"
    body = nn.Identity() if cell.adapted == "all" else network.get_submodule("encoder")
    adapted = network if cell.adapted == "all" else network.get_submodule("head")
    maml = learn2learn.algorithms.MAML(adapted, lr=STEP_SIZE, first_order=first_order)

    def add_gradient(task: Task) -> None:
        support_x, support_y, query_x, query_y = task
        with cast():
            support_x, query_x = body(support_x), body(query_x)
        learner = maml.clone()
        task = support_x, support_y, query_x, query_y
        torch.autograd.backward(_adapted_loss(learner, learner.adapt, task, cell.steps, cast))

    return add_gradient


def _adapted_loss(
    model: nn.Module, take_step: Callable[[Tensor], Any], task: Task, steps: int, cast: Cast
) -> Tensor:
    """Loss on the query set after so many steps on the support set."""
    support_x, support_y, query_x, query_y = task
    for _ in range(steps):
        with cast():
            loss = F.cross_entropy(model(support_x), support_y)
        take_step(loss)
    with cast():
        return F.cross_entropy(model(query_x), query_y)


def accumulate(leaves: list[nn.Parameter], gradients: tuple[Tensor | None, ...]) -> None:
    """Adds gradients to those of the leaves, as a backward pass would."""
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None:
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
