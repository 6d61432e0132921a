"""Loads backbones by name: from torchvision, timm, transformers, or a user's function."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.fx.proxy import TraceError

from fewshot_blo.backbones import timm_models, torchvision_models, transformers_models
from fewshot_blo.backbones.backbone import Backbone, Pool
from fewshot_blo.backbones.layers import prepared
from fewshot_blo.backbones.weights import load_weights, put_weights, trained_weights
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Pixels
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

_LOADERS = {
    "torchvision": torchvision_models.load,
    "timm": timm_models.load,
    "hf": transformers_models.load,
}
LIBRARIES = tuple(f"{library}:" for library in _LOADERS)
"""Prefixes of the names of libraries' backbones."""


@checked
def load_backbone(
    name: str,
    *,
    weights: Path | str | None = None,
    pretrained: bool = True,
    size: Pixels | None = None,
    layer: str = "",
    pool: Pool | None = None,
) -> Backbone:
    """A pretrained network without its classifier, with its own preprocessing.

    Args:
        name: ``torchvision:mobilenet_v3_small``, ``timm:vit_small_patch14_dinov2``,
            ``hf:facebook/dinov2-small`` (a repository or a folder), or ``module:function`` for a
            function of your own that returns a module from images in [0, 1] to features.
        weights: weight file to load instead of the library's own weights, or a checkpoint of a run
            that trained this network further.
        pretrained: load weights; otherwise they are random.
        size: height and width in pixels that images are resized to, and for which a network with
            position embeddings is built; by default that of pretraining.
        layer: name of a layer whose output replaces the network's last features.
        pool: pooling of maps or tokens: average, maximum, first (a class token), or flatten; by
            default that of a ``Backbone`` of your own, otherwise average.

    Raises:
        CheckpointError: if weights are missing or belong to another network; the message says where
            to put which file.
        ConfigurationError: if there is no such network or layer, or its library is not installed.
    """
    library, separator, rest = name.partition(":")
    if not separator or not rest:
        raise ConfigurationError(
            f"backbone is '{name}': use torchvision:NAME, timm:NAME, hf:NAME or module:function"
        )
    file = None if weights is None else Path(weights)
    trained = None if file is None else trained_weights(file)
    if file is None or trained is None:
        made = _made(library, rest, file, pretrained, size)
        body = prepared(made.body)
    else:
        # A run's checkpoint has the names of the trained network, which was prepared.
        made = _made(library, rest, None, False, size)
        body = prepared(made.body)
        put_weights(body, trained, file)
    preprocessing = made.preprocess.settings
    return Backbone(
        _up_to(body, layer) if layer else body,
        preprocessing if size is None else replace(preprocessing, size=size),
        name=name,
        pool=pool or made.pool.pool,
        views=made.views.views,
        power=made.power.power,
    )


def _made(
    library: str, name: str, weights: Path | None, pretrained: bool, size: int | None
) -> Backbone:
    """A library's network, or one from a user's function, which loads its own weights."""
    if load := _LOADERS.get(library):
        return Backbone(*load(name, weights, pretrained, size))
    network = own_network(f"{library}:{name}", "torchvision:NAME, timm:NAME, hf:NAME")
    own = network if isinstance(network, Backbone) else Backbone(network)
    if weights is not None:
        load_weights(own.body, weights)
    return own


def own_network(name: str, others: str) -> nn.Module:
    """What a user's function ``module:function`` returns.

    Args:
        name: name of the function.
        others: alternatives to name in the error.

    Raises:
        ConfigurationError: if there is no such function, or it does not return a module.
    """
    module, _, function = name.partition(":")
    try:
        network = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"network '{name}' cannot be created ({error}): use {others}, or "
            "module:function for a function without arguments that returns a module, in a file "
            "that Python finds (its folder is in PYTHONPATH)"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigurationError(
            f"network '{name}' returned {type(network).__name__}: it must return a torch module"
        )
    return network


class _Output(nn.Module):
    """Returns the single output of a torchvision feature extractor."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, x: Tensor) -> Tensor:
        outputs: dict[str, Tensor] = self.extractor(x)
        return outputs["output"]


def _up_to(body: nn.Module, layer: str) -> nn.Module:
    names = dict(body.named_modules())
    if layer not in names:
        known = ", ".join(name for name in names if name.count(".") < 2)[:300]
        raise ConfigurationError(f"layer '{layer}' is not in the network: use one of {known}")
    torchvision_module()
    extraction: Any = importlib.import_module("torchvision.models.feature_extraction")
    try:
        extractor = extraction.create_feature_extractor(body, {layer: "output"})
    except (TraceError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"layer '{layer}' cannot be extracted, because torch.fx cannot trace the network "
            f"({error}): use its last features, or a module:function of your own"
        ) from error
    return _Output(extractor)
