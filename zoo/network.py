"""``Network``, a member of the zoo, and building it reproducibly with its tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewshot_blo.tasks import TaskBatch

TASKS, WAY, SHOT, QUERY = 2, 3, 2, 2
_NOISE = 0.1


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Attributes:
        family: its library, or "own".
        name: its name in that library.
        build: builds the network, which maps images ``[B, *size]`` to 3 logits.
        size: shape of one image.
        remark: remark for the table.
        seconds: time limit of its row.
    """

    family: str
    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, ...] = (3, 32, 32)
    remark: str = ""
    seconds: float = 300


@dataclass(frozen=True)
class Built:
    """A network in training mode with random weights.

    Attributes:
        module: the network.
        notes: changes that were made to it.
    """

    module: nn.Module
    notes: tuple[str, ...]


def make(network: Network, dtype: torch.dtype, unused: frozenset[str] = frozenset()) -> Built:
    """Builds the module; every call gives equal weights and shares no tensor with other calls.

    Parameters that are initialised to a constant (scales of 1 or 1e-6, shifts of 0) get noise, so
    that no derivative is zero because of the initialization. Dropout is turned off, and ``unused``
    parameters are frozen, as the project's error about them demands.
    """
    torch.manual_seed(0)
    module = network.build()
    notes = [network.remark] if network.remark else []
    module = _convert(module, dtype).train()
    if _without_dropout(module):
        notes.append("dropout set to 0")
    with torch.no_grad():
        for p in module.parameters():
            if _is_constant(p):
                p.add_(_NOISE * torch.randn_like(p))
    for name in unused:
        module.get_parameter(name).requires_grad_(False)
    if unused:
        notes.append(f"{len(unused)} unused parameters frozen")
    return Built(module, tuple(notes))


def _convert(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with its real tensors in ``dtype``, and complex ones in the complex dtype."""

    def convert(x: Tensor) -> Tensor:
        if x.is_complex():
            return x.to(dtype.to_complex())
        return x.to(dtype) if x.is_floating_point() else x

    converted: nn.Module = module._apply(convert)
    return converted


def _is_constant(p: nn.Parameter) -> bool:
    if isinstance(p, nn.UninitializedParameter) or not p.is_floating_point() or not p.numel():
        return False
    return p.requires_grad and bool(p.max() - p.min() < 1e-4)


def tasks(network: Network, dtype: torch.dtype) -> TaskBatch:
    """A batch of two tasks with random images."""
    generator = torch.Generator().manual_seed(1)

    def images(rows: int) -> Tensor:
        shape = (TASKS, rows, *network.size)
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    def labels(each: int) -> Tensor:
        return torch.arange(WAY).repeat_interleave(each).expand(TASKS, -1)

    return TaskBatch(
        images(WAY * SHOT),
        labels(SHOT),
        images(WAY * QUERY),
        labels(QUERY),
        torch.arange(WAY).expand(TASKS, -1),
    )


def _without_dropout(module: nn.Module) -> bool:
    """Sets dropout probabilities in (0, 1) to 0, under the names of all libraries."""
    changed = False
    for layer in module.modules():
        names = ["drop_prob", "drop_rate", "dropout_p", "attention_dropout"]
        if isinstance(layer, nn.modules.dropout._DropoutNd) or "Depth" in type(layer).__name__:
            names.append("p")
        if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
            names.append("dropout")
        for name in names:
            value = getattr(layer, name, None)
            if isinstance(value, float) and 0 < value < 1:
                setattr(layer, name, 0.0)
                changed = True
    return changed


def keep_first(network: nn.Module) -> nn.Module:
    """The network with only the first of consecutive equal blocks in each container."""
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential | nn.ModuleList):
            kept: list[tuple[str, nn.Module]] = []
            for name, child in module.named_children():
                equal = bool(kept) and str(child) == str(kept[-1][1])
                if not equal or next(child.parameters(), None) is None:
                    kept.append((name, child))
            numbered = all(name.isdigit() for name, _ in kept)
            module._modules = {str(i) if numbered else n: c for i, (n, c) in enumerate(kept)}
    return network
