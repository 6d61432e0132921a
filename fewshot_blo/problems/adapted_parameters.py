"""Which parameters of a network adapt to a task."""

from __future__ import annotations

from collections.abc import Container, Sequence

from torch import nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks.norms import NORM_LAYERS
from fewshot_blo.networks.parts import ENCODER, HEAD, part_prefix

HEAD_NAMES = tuple(part_prefix(HEAD) + name for name in ("weight", "bias"))
"""Parameters of the linear head of a ``classifier``."""

_WORDS = {"all": "", "head": part_prefix(HEAD), "body": part_prefix(ENCODER)}


def adapted_names(network: nn.Module, adapted: str | Sequence[str], names: list[str]) -> list[str]:
    """The trainable parameters that adapt, by name.

    Args:
        network: the network.
        adapted: as in ``Initialization``.
        names: names of its trainable parameters.

    Raises:
        ConfigurationError: if none adapts.
    """
    if adapted == "no_norms":
        norms = {n for n, module in network.named_modules() if isinstance(module, NORM_LAYERS)}
        found = [name for name in names if name.rpartition(".")[0] not in norms]
        asked = "is outside of norm layers"
    else:
        if isinstance(adapted, str):
            prefixes: tuple[str, ...] = (_WORDS.get(adapted, adapted),)
        else:
            prefixes = tuple(adapted)
        found = [name for name in names if name.startswith(prefixes)]
        asked = f"has a name that starts with {prefixes}"
    if not found:
        raise ConfigurationError(
            f"no parameter adapts: no trainable parameter {asked}; the network's are {names[:8]}"
        )
    return found


def check_head(network: nn.Module, adapted: Container[str]) -> None:
    """Checks that a head can start from prototypes.

    Raises:
        ConfigurationError: if the network has no encoder and linear head, or the head does not
            adapt.
    """
    encoder, head = (getattr(network, name, None) for name in (ENCODER, HEAD))
    if not (isinstance(encoder, nn.Module) and isinstance(head, nn.Linear)):
        raise ConfigurationError(
            f"the network is a {type(network).__name__} without an encoder and a linear head: use "
            "classifier(encoder, features, way) to start from prototypes"
        )
    if not all(name in adapted for name in HEAD_NAMES):
        raise ConfigurationError(
            f"start prototypes needs a head that adapts, but {' and '.join(HEAD_NAMES)} do not: "
            "adapt them, or use a learned start"
        )
