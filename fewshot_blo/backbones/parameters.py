"""The choice of a network's parameters that adapt to a task."""

from __future__ import annotations

from typing import Literal

from torch import nn

from fewshot_blo.backbones.layers import FrozenBatchNorm
from fewshot_blo.backbones.low_rank import with_low_rank
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks.norms import NORM_LAYERS

Adapts = Literal["head", "last_blocks", "bias", "norms", "low_rank", "all"]
"""What adapts: the head alone, or also the last blocks, all biases, scales and shifts of norms,
low-rank updates of the weights, or all parameters."""

_NORMS = (FrozenBatchNorm, *NORM_LAYERS)


def choose_parameters(
    network: nn.Module, adapts: Adapts, *, blocks: int = 0, rank: int = 4
) -> tuple[nn.Module, list[str]]:
    """The network, with low-rank updates if ``adapts`` says so, and what adapts in it.

    Args:
        network: network as returned by ``load_backbone``.
        adapts: what adapts.
        blocks: number of last blocks that adapt; 0 for all, or 1 for ``last_blocks``.
        rank: rank of low-rank updates.

    Returns:
        The network or a modified copy, and the names of its parameters that adapt, none for
        ``head``.

    Raises:
        ConfigurationError: if blocks or rank are out of range, or no parameter adapts.
    """
    if blocks < 0:
        raise ConfigurationError(f"blocks is {blocks}: it must be at least 0 (0 for all blocks)")
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

    The members of ``nn.Sequential`` and ``nn.ModuleList`` are blocks, with nested containers
    flattened; a layer outside of containers is a block of its own. Blocks have parameters.
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
    """Prefixes of the names of parameters from the last ``count`` blocks on; of all for 0."""
    if not count:
        return ("",)
    norms = {name for name, module in network.named_modules() if isinstance(module, _NORMS)}
    names = block_names(network)
    places = [place for place, name in enumerate(names) if name not in norms]
    if count > len(places):
        raise ConfigurationError(
            f"blocks is {count}: it must be at most {len(places)}, the blocks of the network"
        )
    return tuple(f"{name}." for name in names[places[-count] :])
