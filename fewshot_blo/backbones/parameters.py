"""Which parameters of a network adapt to a task."""

from __future__ import annotations

from typing import Literal

from torch import nn

from fewshot_blo.backbones.layers import FrozenBatchNorm
from fewshot_blo.backbones.low_rank import with_low_rank
from fewshot_blo.errors import ConfigurationError

Adapts = Literal["head", "last_blocks", "bias", "norms", "low_rank", "all"]
"""What adapts: the head alone, or with it the last blocks, all biases, scales and shifts of the
norms, low-rank updates of the weights, or everything."""

_NORMS = (
    FrozenBatchNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm2d,
)


def choose_parameters(
    network: nn.Module, adapts: Adapts, *, blocks: int = 0, rank: int = 4
) -> tuple[nn.Module, list[str]]:
    """The network, with new layers where ``adapts`` asks for them, and what adapts in it.

    Args:
        network: as ``load_backbone`` gives it.
        adapts: what adapts.
        blocks: only in so many of the last blocks; 0 for all, and for ``last_blocks`` one.
        rank: of low-rank updates.

    Returns:
        The network or a changed copy, and names of its parameters, none for ``head``.

    Raises:
        ConfigurationError: if the numbers make no sense, or nothing is left to adapt.
    """
    if blocks < 0:
        raise ConfigurationError(f"blocks is {blocks}: it is a number of blocks, 0 for all")
    if adapts == "head":
        return network, []
    count = blocks or (1 if adapts == "last_blocks" else 0)
    prefixes = _last(network, count)
    if adapts == "low_rank":
        return with_low_rank(network, rank, prefixes)
    names = [name for name, _ in network.named_parameters() if name.startswith(prefixes)]
    if adapts == "bias":
        names = [name for name in names if name.endswith("bias")]
    elif adapts == "norms":
        norms = {name for name, module in network.named_modules() if isinstance(module, _NORMS)}
        names = [name for name in names if name.rpartition(".")[0] in norms]
    if not names:
        raise ConfigurationError(
            f"nothing adapts: {type(network).__name__} has no parameters for '{adapts}'"
            + (f" in its last {count} blocks" if count else "")
        )
    return network, names


def block_names(network: nn.Module) -> list[str]:
    """Names of the blocks of a network, in the order of their definition.

    The members of sequences and lists are blocks, unless they are such themselves; layers outside
    of these stand for themselves. Only what has parameters is one.
    """

    def visit(module: nn.Module, name: str, member: bool) -> list[str]:
        container = type(module) in (nn.Sequential, nn.ModuleList)
        children = list(module.named_children())
        if not any(True for _ in module.parameters()):
            return []
        if not children or isinstance(module, _NORMS) or (member and not container):
            return [name]
        prefix = f"{name}." if name else ""
        return [found for own, child in children for found in visit(child, prefix + own, container)]

    return visit(network, "", member=False)


def _last(network: nn.Module, count: int) -> tuple[str, ...]:
    """Beginnings of the names of parameters from the last blocks on; of all for 0."""
    if not count:
        return ("",)
    norms = {name for name, module in network.named_modules() if isinstance(module, _NORMS)}
    names = block_names(network)
    places = [place for place, name in enumerate(names) if name not in norms]
    if count > len(places):
        raise ConfigurationError(f"blocks is {count}: the network has {len(places)}")
    return tuple(f"{name}." for name in names[places[-count] :])
