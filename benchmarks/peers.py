"""The contenders beside ours, and the step of those that loop over tasks in PyTorch."""

from __future__ import annotations

import importlib
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import peer_losses
import peer_unrolling
import torch
from grid import Cell
from ours import Step, Weights
from torch import Tensor, nn

from fewshot_blo.kernel.precision import product_precision
from fewshot_blo.tasks import TaskBatch

HIGHER, CACHED, LEARN2LEARN = "higher", "higher, features cached", "learn2learn"
TORCHOPT = "TorchOpt"
JAX_VMAP, JAX_MAP = "JAX, vmap", "JAX, lax.map"
JAX = (JAX_VMAP, JAX_MAP)
_LIBRARIES = {
    HIGHER: "higher",
    CACHED: "higher",
    LEARN2LEARN: "learn2learn",
    TORCHOPT: "torchopt",
    JAX_VMAP: "jax",
    JAX_MAP: "jax",
}
PEERS = tuple(_LIBRARIES)


def contenders(cell: Cell) -> list[str]:
    """The peers that can do what the cell asks for."""
    names = [HIGHER]
    if cell.adapted == "head":
        names.append(CACHED)
    if cell.method in ("second", "first"):
        names += [LEARN2LEARN, TORCHOPT]
    return [*names, *JAX]


def import_peer(name: str) -> ModuleType:
    """The library behind a contender.

    Raises:
        ImportError: if it is not installed.
    """
    with warnings.catch_warnings():
        # Of gym, pkg_resources and others that learn2learn imports.
        warnings.simplefilter("ignore")
        if name == LEARN2LEARN:
            importlib.import_module(
                "fewshot_blo.tasks.reading.torchvision_import"
            ).torchvision_module()
        return importlib.import_module(_LIBRARIES[name])


def build(name: str, cell: Cell, weights: Weights, batch: TaskBatch) -> Step:
    """The outer step on a batch, of a peer that is written in PyTorch.

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

    if cell.method in ("implicit", "penalty"):
        add_gradient = peer_losses.higher(library, cell, network, cast, cached=name == CACHED)
    elif name == LEARN2LEARN:
        add_gradient = peer_unrolling.learn2learn(library, cell, network, cast)
    elif name == TORCHOPT:
        add_gradient = peer_unrolling.torchopt(library, cell, network, cast)
    else:
        add_gradient = peer_unrolling.higher(library, cell, network, cast, cached=name == CACHED)
    # TorchOpt leaves views of them in the network.
    leaves = dict(network.named_parameters())

    def step() -> Weights:
        for p in leaves.values():
            p.grad = None
        with product_precision(cell.precision, device):
            for task in tasks(batch):
                add_gradient(task)
        return {
            outer_name(parameter, cell): p.grad / batch.tasks
            for parameter, p in leaves.items()
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
    """Exchanges batch norms for those that take the batch's statistics in every mode."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.BatchNorm2d(child.num_features, child.eps, track_running_stats=False)
            setattr(network, name, norm)
        elif not any(True for _ in child.children()):
            assert type(child).__module__.startswith("torch.nn."), f"{child} is not PyTorch's"
        _replace_norms(child)


def tasks(batch: TaskBatch) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Support images and labels, query images and labels of each task."""
    return zip(batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True)
