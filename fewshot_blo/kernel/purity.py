"""Stateless forward passes: what a network modifies while it runs is restored or discarded.

A forward pass is a function of parameters, buffers, inputs and keys. Every pass, in every inner
step and for every task, starts from the same buffers and attributes: those that the network had
when it was passed in, or running statistics that were estimated since. What a pass writes to them
is visible to the rest of that pass alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.hooks import has_hooks
from fewshot_blo.kernel.layers import TorchBatchNorm
from fewshot_blo.tasks.inputs import Inputs, each, tensors_of

Kind = tuple[bool, tuple[torch.Size, ...]]
"""The network's mode and the shapes of its inputs: they may decide what a pass writes to."""

WRITES_INPUT = (
    "the forward pass of the network writes to its input, which the first pass did not: the task's "
    "examples are changed; write x = x - 0.5 in place of x -= 0.5, and set inplace=False in layers "
    "that get the input"
)

NO_WRITES = "a forward pass must not modify parameters"

_writes_input: weakref.WeakKeyDictionary[nn.Module, dict[Kind, bool]] = weakref.WeakKeyDictionary()
_changed: weakref.WeakKeyDictionary[nn.Module, dict[Kind, tuple[str, ...]]] = (
    weakref.WeakKeyDictionary()
)
_MISSING = object()


def kind_of_pass(network: nn.Module, x: Inputs) -> Kind:
    """The kind of a pass on inputs ``[B, ...]``."""
    return network.training, tuple(p.shape for p in tensors_of(x))


@contextmanager
def input_kept(network: nn.Module, kind: Kind, x: Inputs) -> Iterator[Inputs]:
    """Inputs for a forward pass that may write to them: a copy, unless an earlier pass did not.

    Args:
        network: the network.
        kind: as returned by ``kind_of_pass``.
        x: its inputs.

    Raises:
        ConfigurationError: on exit, if they were no copy and were written to.
    """
    known = _writes_input.setdefault(network, {})
    own = each(torch.clone, x) if known.get(kind, True) else x
    before = _versions(own)
    yield own
    written = _versions(own) != before
    if written and own is x:
        raise ConfigurationError(WRITES_INPUT)
    known[kind] = written or known.get(kind, False)


def _versions(x: Inputs) -> list[int]:
    return [p._version for p in tensors_of(x)]


@contextmanager
def parameters_kept(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Checks on exit that nothing inside has written to parameters.

    Raises:
        ConfigurationError: if something has.
    """
    versions = [p._version for p in parameters.values()]
    yield
    for (name, p), version in zip(parameters.items(), versions, strict=True):
        if p._version != version:
            raise ConfigurationError(
                f"the forward pass of the network modifies its parameter '{name}' in place (as "
                f"nn.Embedding does with max_norm): {NO_WRITES}"
            )


def changed_buffers(
    network: nn.Module,
    kind: Kind,
    names: Sequence[str],
    forward: Callable[[dict[str, Tensor]], object],
) -> tuple[str, ...]:
    """Names of the buffers that a forward pass writes to, found by one trial run of each kind.

    A pass on other values may write to more of them, so that every pass needs fresh copies.

    Args:
        network: the network.
        kind: as returned by ``kind_of_pass``.
        names: as returned by ``writable_buffers``.
        forward: runs it once, with the given buffers in place of its own.
    """
    known = _changed.setdefault(network, {})
    if kind not in known:
        copies = {name: network.get_buffer(name).clone() for name in names}
        if copies:
            with torch.random.fork_rng(_devices(copies)), torch.no_grad():
                forward(copies)
        known[kind] = tuple(name for name, b in copies.items() if b._version > 0)
    return known[kind]


def writable_buffers(network: nn.Module) -> tuple[str, ...]:
    """All buffers except those of PyTorch's batch norms, which the kernel keeps unchanged."""
    norms = {
        id(buffer)
        for module in network.modules()
        if isinstance(module, TorchBatchNorm) and _is_ours(type(module).forward.__module__)
        for buffer in (module.running_mean, module.running_var)
    }
    return tuple(name for name, b in network.named_buffers() if id(b) not in norms)


def _is_ours(module: str) -> bool:
    """Whether a class or function of a Python module is PyTorch's or the kernel's."""
    return module.startswith(("torch.nn.modules.", "fewshot_blo."))


def _devices(tensors: dict[str, Tensor]) -> list[torch.device]:
    return list({b.device for b in tensors.values() if b.device.type == "cuda"})


def writers(network: nn.Module) -> list[nn.Module]:
    """The modules whose forward may assign attributes: user-defined ones, or with hooks."""
    return [
        module
        for module in network.modules()
        if not _is_ours(type(module).__module__) or has_hooks(module)
    ]


def names_of_tensors(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """All names of each parameter and buffer, by the tensor's first name.

    ``torch.func.functional_call`` can find tied tensors itself, but then leaves the call's tensors
    in a layer that has two names (torch 2.13), so each layer is listed once here.
    """
    places: dict[int, list[str]] = {}
    for prefix, module in network.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                places.setdefault(id(tensor), []).append(f"{prefix}.{name}" if prefix else name)
    return {names[0]: tuple(names) for names in places.values()}


def call(
    network: nn.Module,
    values: Mapping[str, Tensor],
    names: Mapping[str, tuple[str, ...]],
    x: Inputs,
) -> tuple[object, dict[str, Tensor]]:
    """Runs the network with values in place of its own tensors, which are restored afterwards.

    Args:
        network: the network.
        values: values by the tensor's first name.
        names: as returned by ``names_of_tensors``.
        x: its input, one tensor or a mapping.

    Returns:
        The output, and the tensors under these names at the end of the call.
    """
    placed = {name: value for first, value in values.items() for name in names.get(first, ())}
    output = functional_call(network, placed, (x,), tie_weights=False)
    return output, placed


def call_alone(network: nn.Module, x: Inputs) -> object:
    """The network's output with its own parameters; neither it nor the input changes."""
    buffers = {name: network.get_buffer(name).clone() for name in writable_buffers(network)}
    with attributes_kept(writers(network)):
        return call(network, buffers, names_of_tensors(network), each(torch.clone, x))[0]


@contextmanager
def attributes_kept(modules: Sequence[nn.Module]) -> Iterator[list[tuple[nn.Module, str]]]:
    """Restores attributes that are assigned inside to their previous values on exit.

    Yields:
        A list, filled on exit with the module and name of each attribute that was assigned a tensor
        or a different number.
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
                assigned += [(module, n) for n, v in changed.items() if _counts(v, old.get(n))]
                attributes.clear()
                attributes.update(old)


def _counts(new: object, old: object) -> bool:
    numbers = isinstance(new, int | float) and isinstance(old, int | float)
    return isinstance(new, Tensor) or (numbers and new != old)
