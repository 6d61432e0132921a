"""Encoders for recipes and the command line: pretrained networks and the user's own."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from fewshot_blo.backbones.backbone import Backbone
from fewshot_blo.backbones.layers import prepared
from fewshot_blo.backbones.load import LIBRARIES, load_backbone, own_network
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, NonNegative

PixelsOrOwn = Annotated[int, AtLeast(0), AtMost(8192)]


@checked
def pretrained(
    network: str,
    *,
    weights: str = "",
    size: PixelsOrOwn = 0,
    sharpen: NonNegative = 0.0,
    trained: bool = True,
) -> Backbone:
    """A pretrained network of a library, without its classifier, with its own preprocessing.

    Args:
        network: torchvision:NAME, timm:NAME or hf:NAME.
        weights: weight file to load instead of the library's own weights.
        size: height and width in pixels that images are resized to; 0 for that of pretraining.
        sharpen: strength of sharpening before resizing; 0.25 to 1 may help with small images.
        trained: load weights; otherwise they are random.

    Raises:
        CheckpointError, ConfigurationError: as ``load_backbone``.
    """
    backbone = load_backbone(
        network,
        weights=(weights or None) if trained else None,
        pretrained=trained,
        size=size or None,
    )
    return _seeing(backbone, size, sharpen)


@checked
def own(function: str, *, size: PixelsOrOwn = 0, sharpen: NonNegative = 0.0) -> nn.Module:
    """A network that a function of your own returns.

    Args:
        function: "module:function", a function without arguments that returns a module from images
            to features.
        size: height and width in pixels that a Backbone resizes images to; 0 for its own size.
        sharpen: strength of a Backbone's sharpening before resizing.

    Raises:
        ConfigurationError: if there is no such function, or size or sharpen is set for a network
            that is not a Backbone.
    """
    network = own_network(function, "an encoder of this package or a library's network")
    if isinstance(network, Backbone):
        return _seeing(network.with_body(prepared(network.body)), size, sharpen)
    for name, value in (("size", size), ("sharpen", sharpen)):
        if value:
            raise ConfigurationError(
                f"{name} is {value}, and {function} returns a {type(network).__name__}: only a "
                "Backbone resizes and sharpens images, so return one or leave it at 0"
            )
    return network


def _seeing(backbone: Backbone, size: int, sharpen: float) -> Backbone:
    return backbone.preprocessed(**({"size": size} if size else {}), sharpen=sharpen)


def by_shorthand(name: str) -> dict[str, str] | None:
    """The settings that ``LIBRARY:NAME`` and ``module:function`` abbreviate; None for others."""
    if name.startswith(LIBRARIES):
        return {"name": pretrained.__name__, "network": name}
    return {"name": own.__name__, "function": name} if ":" in name else None
