"""Backbones from Hugging Face transformers."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewshot_blo.backbones.backbone import Interpolation, Preprocessing
from fewshot_blo.backbones.sizes import check_patches
from fewshot_blo.errors import CheckpointError, ConfigurationError, installed_by
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

_BICUBIC = 3
"""Pillow's constant for bicubic interpolation."""


class Features(nn.Module):
    """The last hidden state of a vision model, as a plain tensor.

    Args:
        model: the model.
        interpolates: interpolate position embeddings to the size of the images.
    """

    def __init__(self, model: nn.Module, *, interpolates: bool = False) -> None:
        super().__init__()
        self.model = model
        self.options = {"interpolate_pos_encoding": True} if interpolates else {}

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, L, D]`` or maps ``[B, D, H, W]`` of images ``[B, 3, H, W]``."""
        output = self.model(pixel_values=x, **self.options)
        hidden: Tensor = output.last_hidden_state
        return hidden


def load(
    name: str, weights: Path | None, pretrained: bool, size: int | None = None
) -> tuple[nn.Module, Preprocessing]:
    """A vision model and its preprocessing.

    Args:
        name: name of a repository, or of a folder that ``save_pretrained`` wrote.
        weights: must be None: the repository or folder contains the weights.
        pretrained: load weights; otherwise they are random.
        size: height and width of the images in pixels; None for those of pretraining.

    Raises:
        CheckpointError: if the model is not in the cache and cannot be downloaded.
        ConfigurationError: if transformers is not installed, a weight file is given, or patches do
            not fill images of this size.
    """
    torchvision_module()
    with installed_by("transformers"):
        transformers: Any = importlib.import_module("transformers")
    if weights is not None:
        raise ConfigurationError(
            f"weights is {weights}: hf:{name} reads its weights from its own folder; use hf:FOLDER"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        models, eager = transformers.AutoModel, {"attn_implementation": "eager"}
        if pretrained:
            model = models.from_pretrained(name, **eager)
        else:
            model = models.from_config(config, **eager)
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"the model hf:{name} could not be loaded ({reason}): with a network, check its name; "
            "without, name the folder that save_pretrained wrote, hf:FOLDER"
        ) from error
    model = getattr(model, "vision_model", model)  # In models of images and text.
    sizes: Any = getattr(processor, "crop_size", None) or processor.size
    native = int(sizes.get("height") or sizes["shortest_edge"])
    interpolates = _interpolates(name, model, size) if size not in (None, native) else False
    interpolation: Interpolation = "bicubic" if processor.resample == _BICUBIC else "bilinear"
    return Features(model, interpolates=interpolates), Preprocessing(
        size or native, tuple(processor.image_mean), tuple(processor.image_std), interpolation
    )


def _interpolates(name: str, model: Any, size: int) -> bool:
    """Whether the model has to be told to interpolate position embeddings to another size."""
    patch = getattr(model.config, "patch_size", None)
    if isinstance(patch, int):
        check_patches(f"hf:{name}", size, patch)
    return "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
