"""The zoo's families: libraries that networks are from."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from zoo.network import Network

_MODULES = {
    "torch.nn": "torch_layers",
    "own": "own_modules",
    "transformers": "transformers_networks",
    "torchvision": "torchvision_networks",
    "timm": "timm_networks",
}
FAMILIES = tuple(_MODULES)


def installed(family: str) -> bool:
    """Whether the library of a family can be imported."""
    return family == "own" or importlib.util.find_spec(family) is not None


def module_of(family: str) -> str:
    """The module that lists a family's members."""
    return f"zoo.{_MODULES[family]}"


def networks(family: str) -> list[Network]:
    """The members of a family, without building them."""
    return listed(module_of(family))


def listed(module: str) -> list[Network]:
    """What a module lists."""
    listing: Callable[[], list[Network]] = importlib.import_module(module).networks
    return listing()
