"""The families of the zoo: the libraries whose networks it contains."""

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
    """Whether the library of a family is installed."""
    return family == "own" or importlib.util.find_spec(family) is not None


def module_of(family: str) -> str:
    """Name of the module that lists a family's networks."""
    return f"zoo.{_MODULES[family]}"


def networks(family: str) -> list[Network]:
    """The networks of a family, not built yet."""
    return listed(module_of(family))


def listed(module: str) -> list[Network]:
    """The networks that a module lists."""
    listing: Callable[[], list[Network]] = importlib.import_module(module).networks
    return listing()
