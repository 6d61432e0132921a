"""Backbones from torchvision."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from fewshot_blo.backbones.backbone import Interpolation, Preprocessing
from fewshot_blo.backbones.weights import load_weights
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

_CLASSIFIERS = ("fc", "classifier", "heads", "head")


def load(name: str, weights: Path | None, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """A classification network without its classifier, and its preprocessing.

    Args:
        name: name as in ``torchvision.models.list_models()``.
        weights: weight file to load instead of the published weights.
        pretrained: load weights; otherwise they are random.

    Raises:
        CheckpointError: if the weights are not in torch's cache and cannot be downloaded, or the
            file is another network's.
        ConfigurationError: if there is no such network.
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
    for classifier in _CLASSIFIERS:
        if isinstance(getattr(network, classifier, None), nn.Module):
            setattr(network, classifier, nn.Identity())
            break
    else:
        raise ConfigurationError(
            f"torchvision:{name} has no classifier named {', '.join(_CLASSIFIERS)}: use another"
        )
    if weights is not None:
        load_weights(network, weights, dropped=whole - set(network.state_dict()))
    transforms = published.transforms()
    mode = str(transforms.interpolation.value)
    interpolation: Interpolation = "bicubic" if mode == "bicubic" else "bilinear"
    size = int(transforms.crop_size[0])
    preprocessing = Preprocessing(
        size, tuple(transforms.mean), tuple(transforms.std), interpolation
    )
    return network, preprocessing


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
