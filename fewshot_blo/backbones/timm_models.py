"""Backbones from timm."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fewshot_blo.backbones.backbone import Interpolation, Preprocessing
from fewshot_blo.backbones.weights import load_weights
from fewshot_blo.errors import CheckpointError, ConfigurationError, installed_by
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module


def load(name: str, weights: Path | None, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """A network without its classifier, and its preprocessing.

    Args:
        name: name as in ``timm.list_models()``.
        weights: weight file to load instead of the published weights.
        pretrained: load weights; otherwise they are random.

    Raises:
        CheckpointError: if the weights are not in the cache and cannot be downloaded, or the file
            is another network's.
        ConfigurationError: if timm is not installed or has no such network.
    """
    timm = _timm()
    if not timm.is_model(name):
        near = ", ".join(get_close_matches(name, timm.list_models(), 3, 0.0))
        raise ConfigurationError(f"timm has no network '{name}': the nearest names are {near}")
    if pretrained and weights is None:
        network = _published(timm, name)
    else:
        network = timm.create_model(name, pretrained=False)
    whole = set(network.state_dict())
    network.reset_classifier(0)
    if weights is not None:
        load_weights(network, weights, dropped=whole - set(network.state_dict()))
    settings: dict[str, Any] = timm.data.resolve_model_data_config(network)
    mode = settings["interpolation"]
    interpolation: Interpolation = "bicubic" if mode == "bicubic" else "bilinear"
    size = int(settings["input_size"][-1])
    return network, Preprocessing(
        size, tuple(settings["mean"]), tuple(settings["std"]), interpolation
    )


def _timm() -> ModuleType:
    torchvision_module()  # timm imports torchvision, which may need its operators declared.
    with installed_by("fewshot_blo[backbones]"):
        import timm
    module: ModuleType = timm
    return module


def _published(timm: ModuleType, name: str) -> Any:
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # An error of huggingface_hub, requests or urllib.
        settings = timm.get_pretrained_cfg(name)
        if settings is None or not (settings.hf_hub_id or settings.url):
            raise CheckpointError(f"timm has no weights for '{name}': {error}") from error
        source = settings.url or f"https://huggingface.co/{settings.hf_hub_id}"
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"the weights of timm:{name} are not in the cache and could not be downloaded from "
            f"{source} ({reason}): download model.safetensors or the .pth file from there and "
            "pass it as weights"
        ) from error
