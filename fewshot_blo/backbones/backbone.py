"""A pretrained network as an encoder: images in, features out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks.power import PowerTransform
from fewshot_blo.networks.views import COUNT, ImageViews, MeanOverViews, Views
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import NonNegative, NotEmpty, Pixels, Positive

Interpolation = Literal["bilinear", "bicubic", "nearest"]
Pool = Literal["average", "maximum", "first", "flatten"]


@checked
@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of images, as in the training of a network.

    Attributes:
        size: height and width in pixels that images are resized to; None keeps their size.
        mean: mean of each channel of images with values in [0, 1], which is subtracted.
        std: standard deviation of each channel, by which images are divided.
        interpolation: interpolation of the resizing.
        sharpen: strength of an unsharp mask (with a 3x3 mean) before resizing, at least 0. An
            enlarged small image lacks the detail of training images: 0.25 to 1 may help.

    Raises:
        ConfigurationError: if size is not positive, sharpen is negative, or mean and std are not
            one value per channel with positive std.
    """

    size: Pixels | None = None
    mean: Annotated[tuple[float, ...], NotEmpty()] = (0.0, 0.0, 0.0)
    std: Annotated[tuple[Positive, ...], NotEmpty()] = (1.0, 1.0, 1.0)
    interpolation: Interpolation = "bilinear"
    sharpen: NonNegative = 0.0

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ConfigurationError(
                f"mean is {self.mean} and std is {self.std}: each must have one value per channel"
            )


class Preprocess(nn.Module):
    """Sharpens, resizes and normalises images; grey ones are broadcast to all channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: Preprocessing) -> None:
        super().__init__()
        self.settings = settings
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", torch.tensor(settings.mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(settings.std).reshape(shape), persistent=False)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Images ``[B, C, S, S]`` of images ``[B, C or 1, H, W]`` with values in [0, 1].

        Args:
            x: the images.
            scale: factor of the size S.
        """
        size, mode = self.settings.size, self.settings.interpolation
        if self.settings.sharpen:
            blurred = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            x = (x + self.settings.sharpen * (x - blurred)).clamp(0, 1)
        height, width = x.shape[-2:] if size is None else (size, size)
        wanted = (max(round(scale * height), 1), max(round(scale * width), 1))
        if x.shape[-2:] != wanted:
            smooth = mode != "nearest"
            x = F.interpolate(x, wanted, mode=mode, antialias=smooth).clamp(0, 1)
        return (x - self.mean) / self.std


class Pooling(nn.Module):
    """Features ``[B, D]`` of maps ``[B, D, H, W]`` or tokens ``[B, L, D]``."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool: Pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """The pooled features; vectors are returned unchanged."""
        if x.ndim == 2 or self.pool == "flatten":
            return x.flatten(1)
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        if self.pool == "first":
            return x[:, 0]
        return x.mean(1) if self.pool == "average" else x.amax(1)


@checked
class Backbone(nn.Module):
    """Preprocessing, a pretrained network without its classifier, and pooling.

    Args:
        body: network from normalised images to vectors, maps or tokens.
        preprocessing: preprocessing of images, as in the training of ``body``.
        name: name of the network, as in ``load_backbone``.
        pool: pooling of maps or tokens.
        views: views of every image, whose features are averaged.
        power: exponent of the power transform of the features; 1 for none.

    Raises:
        ConfigurationError: if the power is not positive.
    """

    def __init__(
        self,
        body: nn.Module,
        preprocessing: Preprocessing = Preprocessing(),
        *,
        name: str = "",
        pool: Pool = "average",
        views: Views = "one",
        power: Positive = 1.0,
    ) -> None:
        super().__init__()
        self.name = name or type(body).__name__
        self.views = ImageViews(views)
        self.preprocess = Preprocess(preprocessing)
        self.body = body
        self.pool = Pooling(pool)
        self.mean = MeanOverViews(COUNT[views])
        self.power = PowerTransform(power)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, D]`` of images ``[B, C, H, W]`` with values in [0, 1]."""
        x = self.views(x)
        seen = [
            self.pool(self.body(self.preprocess(x.flip(-1) if mirrored else x, scale)))
            for scale, mirrored in self.views.scales
        ]
        views = seen[0] if len(seen) == 1 else torch.stack(seen, 1).flatten(0, 1)
        features: Tensor = self.power(self.mean(views))
        return features

    @property
    def size(self) -> int:
        """Height and width in pixels that images are resized to.

        Raises:
            ConfigurationError: if the network has no image size.
        """
        size = self.preprocess.settings.size
        if size is None:
            raise ConfigurationError(
                f"{self.name} has no default image size: set size to the height and width in "
                "pixels that images are to be resized to"
            )
        return size

    def with_views(self, views: Views) -> Backbone:
        """The same network with other views of an image."""
        return self._changed(views=views)

    def with_power(self, power: float) -> Backbone:
        """The same network with another power transform of its features."""
        return self._changed(power=power)

    def preprocessed(self, **settings: Any) -> Backbone:
        """The same network with other settings of ``Preprocessing``, as ``size=160``."""
        return self._changed(preprocessing=replace(self.preprocess.settings, **settings))

    def with_body(self, body: nn.Module) -> Backbone:
        """The same preprocessing and pooling with another body."""
        return self._changed(body=body)

    def _changed(self, **changes: Any) -> Backbone:
        settings: dict[str, Any] = {
            "body": self.body,
            "preprocessing": self.preprocess.settings,
            "name": self.name,
            "pool": self.pool.pool,
            "views": self.views.views,
            "power": self.power.power,
        }
        return Backbone(**{**settings, **changes})

    @torch.no_grad()
    def features(self, image: torch.Size) -> int:
        """D, the number of features, for images of shape ``[C, H, W]``.

        Raises:
            ConfigurationError: if the network fails on them, or returns no features.
        """
        example = next(self.parameters(), torch.zeros(()))
        try:
            features = self(torch.zeros(2, *image).to(example))
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigurationError(
                f"{self.name} fails on images of shape {list(image)}, resized to "
                f"{self.preprocess.settings.size} ({reason}): choose another size, or other views "
                f"than {self.views.views}"
            ) from error
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
            raise ConfigurationError(
                f"{self.name} returns {_described(features)} for 2 images: it must return vectors, "
                "maps or tokens for each image"
            )
        return features.shape[1]


def _described(value: object) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
