"""Unrolling as users of ``higher``, learn2learn and TorchOpt write it: task by task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from grid import Cell
from ours import STEP_SIZE
from torch import Tensor, nn

Task = tuple[Tensor, Tensor, Tensor, Tensor]
Cast = Callable[[], AbstractContextManager[Any]]
TaskGradient = Callable[[Task], None]
"""Adds the gradient of one task to the parameters' ``grad``."""


def higher(
    library: ModuleType, cell: Cell, network: nn.Sequential, cast: Cast, *, cached: bool
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
        with library.innerloop_ctx(
            model, optimizer, copy_initial_weights=False, track_higher_grads=second_order
        ) as (fast, inner):
            task = support_x, support_y, query_x, query_y
            loss = _adapted_loss(fast, inner.step, task, cell.steps, cast)
            if second_order:
                torch.autograd.backward(loss)
                return
            at = [*encoder.parameters(), *fast.parameters()] if cached else fast.parameters()
            _accumulate(leaves, torch.autograd.grad(loss, list(at)))

    return add_gradient


def learn2learn(
    library: ModuleType, cell: Cell, network: nn.Sequential, cast: Cast
) -> TaskGradient:
    """MAML, or ANIL as its example has it: the head adapts to features computed once."""
    first_order = cell.method == "first"
    body = nn.Identity() if cell.adapted == "all" else network.get_submodule("encoder")
    adapted = network if cell.adapted == "all" else network.get_submodule("head")
    maml = library.algorithms.MAML(adapted, lr=STEP_SIZE, first_order=first_order)

    def add_gradient(task: Task) -> None:
        support_x, support_y, query_x, query_y = task
        with cast():
            support_x, query_x = body(support_x), body(query_x)
        learner = maml.clone()
        task = support_x, support_y, query_x, query_y
        torch.autograd.backward(_adapted_loss(learner, learner.adapt, task, cell.steps, cast))

    return add_gradient


def torchopt(library: ModuleType, cell: Cell, network: nn.Sequential, cast: Cast) -> TaskGradient:
    """``MetaSGD``, its state and the network's put back after each task, as in its examples.

    It has no first-order option: the adapted weights are cut from their graph after each step, and
    the gradient at them is taken for that of the initial ones. Where the head alone adapts, the
    features are computed once.
    """
    first_order = cell.method == "first"
    encoder, head = network.get_submodule("encoder"), network.get_submodule("head")
    body = nn.Identity() if cell.adapted == "all" else encoder
    adapted = network if cell.adapted == "all" else head
    optimizer = library.MetaSGD(adapted, lr=STEP_SIZE)
    frozen = list(body.parameters())
    leaves = [*frozen, *adapted.parameters()]
    initial = [library.extract_state_dict(x, by="reference") for x in (adapted, optimizer)]

    def take_step(loss: Tensor) -> None:
        optimizer.step(loss)
        if first_order:
            library.stop_gradient(adapted)

    def add_gradient(task: Task) -> None:
        support_x, support_y, query_x, query_y = task
        with cast():
            support_x, query_x = body(support_x), body(query_x)
        support_x = support_x.detach() if first_order else support_x
        task = support_x, support_y, query_x, query_y
        loss = _adapted_loss(adapted, take_step, task, cell.steps, cast)
        if first_order:
            _accumulate(leaves, torch.autograd.grad(loss, [*frozen, *adapted.parameters()]))
        else:
            torch.autograd.backward(loss)
        for target, state in zip((adapted, optimizer), initial, strict=True):
            library.recover_state_dict(target, state)

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


def _accumulate(leaves: list[nn.Parameter], gradients: tuple[Tensor, ...]) -> None:
    """Adds gradients to those of the leaves, as a backward pass would."""
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
