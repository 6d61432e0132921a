"""Classifiers of digits as functions of their parameters, and training them from scratch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

NetworkName = Literal["linear", "perceptron", "sigmoid", "convolutional"]


def make_network(
    name: NetworkName, seed: int, *, hidden: int = 128, bias: bool = True
) -> nn.Module:
    """A network from images ``[B, 1, 28, 28]`` to logits ``[B, 10]``.

    Args:
        name: architecture: "linear" is softmax regression, "perceptron" and "sigmoid" have one
            hidden layer of ReLU or sigmoid units, "convolutional" two convolutions of stride 2 and
            one hidden layer.
        seed: seed of the initial weights; those of softmax regression are zero.
        hidden: units of the hidden layer.
        bias: whether softmax regression has a bias.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "linear":
            layer = nn.Linear(784, 10, bias=bias)
            for p in layer.parameters():
                nn.init.zeros_(p)
            return nn.Sequential(nn.Flatten(), layer)
        if name in ("perceptron", "sigmoid"):
            unit = nn.ReLU() if name == "perceptron" else nn.Sigmoid()
            return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), unit, nn.Linear(hidden, 10))
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 49, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 10),
        )


def initial(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters of a network by name."""
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def logits(network: nn.Module, v: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Logits ``[B, 10]`` of images ``[B, 1, 28, 28]`` with parameters v."""
    found: Tensor = functional_call(network, dict(v), (x,))
    return found


def decay(v: Mapping[str, Tensor]) -> Tensor:
    """The l2 penalty ``|v|² / 2``."""
    return 0.5 * torch.stack([p.square().sum() for p in v.values()]).sum()


@torch.no_grad()
def accuracy(network: nn.Module, v: Mapping[str, Tensor], x: Tensor, y: Tensor) -> float:
    """Accuracy in %.

    Args:
        network: the network.
        v: parameters by name.
        x: images, ``[M, 1, 28, 28]``.
        y: labels, ``[M]``.
    """
    right = [
        logits(network, v, part).argmax(1) == labels
        for part, labels in zip(torch.split(x, 2000), torch.split(y, 2000), strict=True)
    ]
    return 100 * float(torch.cat(right).double().mean())


def fit_to_the_end(
    start: Mapping[str, Tensor], loss: Callable[[Mapping[str, Tensor]], Tensor], steps: int = 300
) -> dict[str, Tensor]:
    """Minimises a smooth full-batch loss with L-BFGS until it converges.

    Args:
        start: initial parameters by name.
        loss: function of the parameters.
        steps: largest number of iterations.
    """
    v = {name: p.clone().requires_grad_() for name, p in start.items()}
    optimizer = torch.optim.LBFGS(
        list(v.values()), max_iter=steps, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(v)
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    return {name: p.detach() for name, p in v.items()}


def fit_in_batches(
    start: Mapping[str, Tensor],
    loss: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    count: int,
    *,
    updates: int,
    batch: int = 200,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Minimises a loss with Adam on mini-batches, with a cosine schedule of the learning rate.

    Args:
        start: initial parameters by name.
        loss: function of the parameters and of the rows of a mini-batch.
        count: number of rows of the data.
        updates: number of steps, in as many epochs as needed.
        batch: rows per mini-batch.
        learning_rate: initial learning rate.
        seed: seed of the order of the rows.
    """
    v = {name: p.clone().requires_grad_() for name, p in start.items()}
    optimizer = torch.optim.Adam(list(v.values()), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    generator = torch.Generator().manual_seed(seed)
    passes = (
        torch.split(torch.randperm(count, generator=generator), batch) for _ in itertools.count()
    )
    for rows in itertools.islice(itertools.chain.from_iterable(passes), updates):
        optimizer.zero_grad()
        loss(v, rows).backward()
        optimizer.step()
        schedule.step()
    return {name: p.detach() for name, p in v.items()}


def updates_of(passes: int, count: int, batch: int) -> int:
    """Number of mini-batches in a number of epochs (``passes``) over ``count`` rows."""
    return passes * -(-count // batch)


def cross_entropy(network: nn.Module, v: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of images ``[B, 1, 28, 28]`` with labels ``[B]``."""
    return F.cross_entropy(logits(network, v, x), y)
