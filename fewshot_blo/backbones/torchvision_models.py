"""Backbones from torchvision."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fewshot_blo.backbones.backbone import Interpolation, Preprocessing
from fewshot_blo.backbones.sizes import cannot_take, check_patches
from fewshot_blo.backbones.weights import load_weights
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

_CLASSIFIERS = ("fc", "classifier", "heads", "head")


def load(
    name: str, weights: Path | None, pretrained: bool, size: int | None = None
) -> tuple[nn.Module, Preprocessing]:
    """A classification network without its classifier, and its preprocessing.

    Weights are loaded at the size of pretraining. Position embeddings are then interpolated to
    another size.

    Args:
        name: name as in ``torchvision.models.list_models()``.
        weights: weight file to load instead of the published weights.
        pretrained: load weights; otherwise they are random.
        size: height and width of the images in pixels; None for those of pretraining.

    Raises:
        CheckpointError: if the weights are not in torch's cache and cannot be downloaded, or the
            file is another network's.
        ConfigurationError: if there is no such network, or none of this size.
    """
    models = torchvision_module().models
    if name not in models.list_models(module=models):
        near = ", ".join(get_close_matches(name, models.list_models(module=models), 3, 0.0))
        raise ConfigurationError(
            f"torchvision has no network '{name}': the nearest names are {near}"
        )
    published = models.get_model_weights(name).DEFAULT
    network: nn.Module = models.get_model(name, weights=None)
    if pretrained and weights is None:
        _load_published(network, published)
    whole = set(network.state_dict())
    _drop_classifier(name, network)
    if weights is not None:
        load_weights(network, weights, dropped=whole - set(network.state_dict()))
    transforms = published.transforms()
    mode = str(transforms.interpolation.value)
    interpolation: Interpolation = "bicubic" if mode == "bicubic" else "bilinear"
    native = int(transforms.crop_size[0])
    if size is not None and size != native:
        network = _resized(models, name, network, size, native)
    preprocessing = Preprocessing(
        size or native, tuple(transforms.mean), tuple(transforms.std), interpolation
    )
    return network, preprocessing


def _resized(models: Any, name: str, network: Any, size: int, native: int) -> nn.Module:
    """The network for images of another size; most networks take any size as they are."""
    if isinstance(network, models.VisionTransformer):
        check_patches(f"torchvision:{name}", size, network.patch_size)
        tensors = models.vision_transformer.interpolate_embeddings(
            size, network.patch_size, network.state_dict()
        )
        built: dict[str, Any] = {"image_size": size}
    elif isinstance(network, models.MaxVit):
        tensors, built = network.state_dict(), {"input_size": (size, size)}
    else:
        return cast(nn.Module, network)
    try:
        changed: nn.Module = models.get_model(name, weights=None, **built)
    except ValueError as error:
        raise cannot_take(f"torchvision:{name}", size, native, error) from error
    _drop_classifier(name, changed)
    changed.load_state_dict(tensors)
    return changed


def _load_published(network: nn.Module, published: object) -> None:
    url = str(getattr(published, "url"))  # noqa: B009
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / url.rpartition("/")[2]
    try:
        state = torch.hub.load_state_dict_from_url(url, progress=True, weights_only=True)
    except OSError as error:
        raise CheckpointError(
            f"the weights {file.name} are not in {folder} and could not be downloaded from {url} "
            f"({error}): put the file there, or pass another weight file"
        ) from error
    network.load_state_dict(state)


def _drop_classifier(name: str, network: nn.Module) -> None:
    for classifier in _CLASSIFIERS:
        if isinstance(getattr(network, classifier, None), nn.Module):
            setattr(network, classifier, nn.Identity())
            return
    raise ConfigurationError(
        f"torchvision:{name} has no classifier named {', '.join(_CLASSIFIERS)}: use another"
    )
