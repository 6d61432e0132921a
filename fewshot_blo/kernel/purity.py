"""Forward passes without memory: what a network changes while it runs is put back or thrown away.

A forward pass is a function of parameters, buffers, inputs and keys. Every pass, in every inner
step and for every task, starts from the same buffers and attributes: those that the network had
when it was handed over, or that running statistics were estimated to be. What it writes into them
is seen by the rest of that pass and by nobody after it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fewshot_blo.kernel.conversion import has_hooks
from fewshot_blo.kernel.layers import TorchBatchNorm

_changed: weakref.WeakKeyDictionary[nn.Module, dict[bool, tuple[str, ...]]] = (
    weakref.WeakKeyDictionary()
)
_MISSING = object()


def changed_buffers(
    network: nn.Module, forward: Callable[[dict[str, Tensor]], object]
) -> tuple[str, ...]:
    """Names of the buffers that a forward pass writes into, found by trying once in each mode.

    Args:
        network: the network.
        forward: runs it once, with these buffers in place of its own.
    """
    known = _changed.setdefault(network, {})
    if network.training not in known:
        copies = {name: b.clone() for name, b in _candidates(network).items()}
        if copies:
            with torch.random.fork_rng(_devices(copies)), torch.no_grad():
                forward(copies)
        known[network.training] = tuple(name for name, b in copies.items() if b._version > 0)
    return known[network.training]


def _candidates(network: nn.Module) -> dict[str, Tensor]:
    """All buffers but those of batch norms, which the kernel does not let change."""
    norms = {
        id(buffer)
        for module in network.modules()
        if isinstance(module, TorchBatchNorm)
        for buffer in (module.running_mean, module.running_var)
    }
    return {name: b for name, b in network.named_buffers() if id(b) not in norms}


def _devices(tensors: dict[str, Tensor]) -> list[torch.device]:
    return list({b.device for b in tensors.values() if b.device.type == "cuda"})


def writers(network: nn.Module) -> list[nn.Module]:
    """The modules whose forward may assign attributes: those of a user's own, or with hooks."""
    return [
        module
        for module in network.modules()
        if not type(module).__module__.startswith(("torch.nn.modules.", "fewshot_blo."))
        or has_hooks(module)
    ]


@contextmanager
def attributes_kept(modules: Sequence[nn.Module]) -> Iterator[list[tuple[nn.Module, str]]]:
    """Attributes that are assigned inside have their old values afterwards.

    Yields:
        A list that then holds the modules and names of those that were assigned a tensor.
    """
    before = [
        (module, attributes, dict(attributes))
        for module in modules
        for attributes in (module._buffers, vars(module))
    ]
    assigned: list[tuple[nn.Module, str]] = []
    try:
        yield assigned
    finally:
        for module, attributes, old in before:
            changed = {n: v for n, v in attributes.items() if old.get(n, _MISSING) is not v}
            if changed or len(attributes) != len(old):
                assigned += [(module, n) for n, v in changed.items() if isinstance(v, Tensor)]
                attributes.clear()
                attributes.update(old)
