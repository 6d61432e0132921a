"""``FewShotClassifier``: fine-tuning as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import nn

from fewshot_blo.backbones import Adapts, Backbone, Preprocessing, Views
from fewshot_blo.errors import ConfigurationError, installed_by
from fewshot_blo.finetune.classifier import Source
from fewshot_blo.finetune.fit import fit
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.tasks.reading.images import read_image, square

with installed_by("fewshot_blo[sklearn]"):
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data

_validated: Callable[..., Any] = validate_data
"""scikit-learn has no types: type checkers take its defaults' types for its arguments'."""


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Few-shot image classifier: ``FewShotClassifier().fit(images, labels).predict(images)``.

    Images are file paths, Pillow images, or arrays ``[M, H, W, C]`` or ``[M, H, W]`` of uint8 or of
    floating-point numbers in [0, 1]. Without a backbone X is an array of features ``[M, D]``, such
    as the output of earlier steps in a Pipeline, and only heads are fitted.

    Args:
        backbone: torchvision:NAME, timm:NAME, hf:NAME or module:function; None for features.
        weights: weight file to use instead of the library's weights.
        size: height and width of the images in pixels; None for that of the network's training.
        adapts: parameters that adapt; "auto" selects by cross-validation.
        views: views of each image: one, mirrored (two), scales (three), shifts (nine), crops (ten)
            or mirrored_shifts (18); "auto" selects by cross-validation.

    Attributes:
        classes_: the labels, ``[N]``.
        accuracy_: expected accuracy on new images, from cross-validation; None if no class has two
            images.
        model_: the fine-tuned ``Classifier``.
    """

    def __init__(
        self,
        backbone: str | None = "torchvision:mobilenet_v3_small",
        *,
        weights: str | Path | None = None,
        size: int | None = None,
        adapts: Adapts | Literal["auto"] = "auto",
        views: Views | Literal["auto"] = "auto",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.size = size
        self.adapts: Adapts | Literal["auto"] = adapts
        self.views: Views | Literal["auto"] = views

    def fit(self, X: Any, y: ArrayLike) -> FewShotClassifier:
        """Selects the way to fine-tune by cross-validation, then fine-tunes on all images.

        Raises:
            ValueError: if X and y have different lengths, y has one class, or X holds no images.
            ConfigurationError: if the backbone has no default image size and ``size`` is None.
        """
        if self.backbone is None:
            X, y = _validated(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, labels = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]!r}: it must have at least 2")
        order = np.argsort(labels, kind="stable")
        source = Source(self.backbone or "features")
        if self.backbone is None:
            network, images = _standardising(X), _as_maps(X)
        else:
            network = source.load(weights=self.weights, size=self.size)
            size = network.preprocess.settings.size
            if size is None:
                raise ConfigurationError(f"{self.backbone} has no default image size: set size")
            images = _images(X, size)
        if len(images) != len(labels):
            raise ValueError(
                f"X has {len(images)} images and y {len(labels)} labels: the numbers must be equal"
            )
        names = tuple(map(str, range(len(self.classes_))))
        target = torch.from_numpy(labels[order].astype(np.int64))
        data = LabelledImages(images[torch.from_numpy(order)], target, names, ())
        adapts = "head" if self.backbone is None else self.adapts
        views = "one" if self.backbone is None else self.views
        self.model_, selection = fit(
            data, network, source, adapts=adapts, views=views, progress=False
        )
        self.accuracy_ = selection.accuracy
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Calibrated probabilities ``[M, N]``."""
        check_is_fitted(self)
        if self.backbone is None:
            images = _as_maps(_validated(self, X, dtype=np.float64, reset=False))
        else:
            images = _images(X, self.model_.size)
        found = self.model_.predict(images).probabilities.double()
        probabilities: NDArray[np.float64] = (found / found.sum(1, keepdim=True)).numpy()
        return probabilities

    def predict(self, X: Any) -> NDArray[Any]:
        """The most likely labels, ``[M]``."""
        places = self.predict_proba(X).argmax(1)
        labels: NDArray[Any] = self.classes_[places]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.backbone is None
        tags.input_tags.three_d_array = self.backbone is not None
        return tags


def _standardising(x: NDArray[np.float64]) -> Backbone:
    """A network that standardises features: mean 0 and standard deviation 1."""
    deviation = x.std(0)
    scale = np.where(deviation > 0, deviation, 1.0)
    settings = Preprocessing(None, tuple(x.mean(0).tolist()), tuple(scale.tolist()))
    return Backbone(nn.Identity(), settings, name="features", pool="flatten")


def _as_maps(x: NDArray[np.float64]) -> torch.Tensor:
    """Features ``[M, D]`` as images with one pixel, ``[M, D, 1, 1]``."""
    return torch.tensor(x)[..., None, None]


def _is_images(X: Any) -> bool:
    if isinstance(X, np.ndarray) and X.dtype != object:
        return X.ndim > 2
    if not isinstance(X, Sequence | np.ndarray) or len(X) == 0:
        return False
    return isinstance(X[0], str | Path | Image.Image | np.ndarray)


def _images(X: Any, size: int) -> torch.Tensor:
    """Images as uint8, ``[M, 3, size, size]``."""
    if not _is_images(X):
        raise ValueError(
            "X holds no images: it must hold file paths, Pillow images or arrays [M, H, W, C]"
        )
    pictures = []
    for item in X:
        if isinstance(item, str | Path):
            pixels = read_image(Path(item), size=size, color=True)
        else:
            image = item if isinstance(item, Image.Image) else Image.fromarray(_bytes(item))
            pixels = square(image.convert("RGB"), size=size)
        pictures.append(torch.from_numpy(pixels))
    return torch.stack(pictures)


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype == np.uint8:
        return array
    if array.size == 0 or array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"images of type {array.dtype} must have values in [0, 1]; for 0 to 255 use uint8"
        )
    return (array * 255).round().astype(np.uint8)
