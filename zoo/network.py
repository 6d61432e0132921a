"""What the zoo holds: networks by name, each built the same way every time."""

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
        family: the library it is from, or "own".
        name: as that library has it.
        build: makes it, from images of ``size`` to 3 logits.
        size: of one image.
        remark: what the reader of the table should know.
        seconds: time limit.
    """

    family: str
    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, ...] = (3, 32, 32)
    remark: str = ""
    seconds: float = 300


@dataclass(frozen=True)
class Built:
    """A network in training mode with random weights, and what was done to it.

    Attributes:
        module: the network.
        notes: what was done.
    """

    module: nn.Module
    notes: tuple[str, ...]


def make(network: Network, dtype: torch.dtype, unused: frozenset[str] = frozenset()) -> Built:
    """The same module at every call, which shares nothing with the others.

    Weights that start at one value (scales at 1 or 1e-6, shifts at 0) get noise, so that no
    derivative is zero by the initialization. Dropout is turned off, and ``unused`` parameters are
    frozen, as the project's error about them asks for.
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
    """The module with all real tensors in ``dtype``, and complex ones to match."""

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
    """Two tasks of random images."""
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
    """Sets dropout to zero wherever libraries keep its probability; at 1 nothing is random."""
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
    """The network with only the first of equal blocks in a row, where a container holds them."""
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
