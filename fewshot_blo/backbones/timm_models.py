"""Backbones from timm."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fewshot_blo.backbones.backbone import Interpolation, Preprocessing
from fewshot_blo.backbones.sizes import cannot_take, check_patches
from fewshot_blo.backbones.weights import load_weights
from fewshot_blo.errors import CheckpointError, ConfigurationError, installed_by
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module


def load(
    name: str, weights: Path | None, pretrained: bool, size: int | None = None
) -> tuple[nn.Module, Preprocessing]:
    """A network without its classifier, and its preprocessing.

    Weights are loaded at the size of pretraining. Position embeddings are then interpolated, and
    windows scaled, to another size.

    Args:
        name: name as in ``timm.list_models()``.
        weights: weight file to load instead of the published weights.
        pretrained: load weights; otherwise they are random.
        size: height and width of the images in pixels; None for those of pretraining.

    Raises:
        CheckpointError: if the weights are not in the cache and cannot be downloaded, or the file
            is another network's.
        ConfigurationError: if timm is not installed, or has no such network or none of this size.
    """
    timm = _timm()
    if not timm.is_model(name):
        near = ", ".join(get_close_matches(name, timm.list_models(), 3, 0.0))
        raise ConfigurationError(f"timm has no network '{name}': the nearest names are {near}")
    load_published = pretrained and weights is None
    network = _created(timm, name, load_published)
    settings: dict[str, Any] = timm.data.resolve_model_data_config(network)
    height, width = map(int, settings["input_size"][-2:])
    side = size or _square(name, height, width)
    resized, resizable = (height, width) != (side, side), hasattr(network, "set_input_size")
    if resized and not resizable and "img_size" in inspect.signature(type(network)).parameters:
        with _of_size(name, side, width):
            network = _created(timm, name, load_published, img_size=side)
    whole = set(network.state_dict())
    network.reset_classifier(0)
    if weights is not None:
        load_weights(network, weights, dropped=whole - set(network.state_dict()))
    if resized and resizable:
        _resize(name, network, side, width)
    mode = settings["interpolation"]
    interpolation: Interpolation = "bicubic" if mode == "bicubic" else "bilinear"
    return network, Preprocessing(
        side, tuple(settings["mean"]), tuple(settings["std"]), interpolation
    )


def _created(timm: ModuleType, name: str, load_published: bool, **built: int) -> Any:
    if load_published:
        return _published(timm, name, built)
    return timm.create_model(name, pretrained=False, **built)


def _resize(name: str, network: Any, size: int, native: int) -> None:
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if patch is not None:
        check_patches(f"timm:{name}", size, patch if isinstance(patch, int) else int(patch[0]))
    with _of_size(name, size, native), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of timm's own use of PyTorch.
        network.set_input_size(img_size=(size, size))


@contextmanager
def _of_size(name: str, size: int, native: int) -> Iterator[None]:
    """Inside, errors of timm say that there is no network of this size."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise cannot_take(f"timm:{name}", size, native, error) from error


def _square(name: str, height: int, width: int) -> int:
    """Height and width to resize images to; warns if pretraining had others."""
    if height != width:
        warnings.warn(
            f"timm:{name} was trained on images of {height} x {width} pixels: images are resized "
            f"to {width} x {width}; set size for another",
            stacklevel=5,
        )
    return width


def _timm() -> ModuleType:
    torchvision_module()  # timm imports torchvision, which may need its operators declared.
    with installed_by(".[backbones]"):
        import timm
    module: ModuleType = timm
    return module


def _published(timm: ModuleType, name: str, built: Mapping[str, int]) -> Any:
    try:
        return timm.create_model(name, pretrained=True, **built)
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
