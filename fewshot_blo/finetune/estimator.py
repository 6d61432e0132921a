"""Fine-tuning as a scikit-learn estimator."""

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
    """``FewShotClassifier().fit(images, labels).predict(images)``.

    Images are files' paths, Pillow images, or arrays ``[M, H, W, C]`` or ``[M, H, W]`` of bytes or
    of numbers in [0, 1]. Without a backbone X is a table of features ``[M, D]``, made by what
    stands before in a Pipeline, and heads alone are fitted.

    Args:
        backbone: torchvision:NAME, timm:NAME, hf:NAME or module:function, or None.
        weights: file of weights to use instead of the library's own.
        size: of the images in pixels; None for that of the network's training.
        adapts: what adapts; "auto" lets held-out images choose.
        views: of each image: one, mirrored (two), scales (three), shifts (nine), crops (ten),
            mirrored_shifts; "auto" lets held-out images choose.

    Attributes:
        classes_: the labels.
        accuracy_: to expect on new images, from held-out ones; None where no class has two.
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
        """Chooses how to fine-tune by held-out images, and does it on all."""
        if self.backbone is None:
            X, y = _validated(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, labels = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]!r}: a classifier needs 2 or more")
        order = np.argsort(labels, kind="stable")
        source = Source(self.backbone or "features")
        if self.backbone is None:
            network, images = _standardising(X), _as_maps(X)
        else:
            network = source.load(weights=self.weights, size=self.size)
            size = network.preprocess.settings.size
            if size is None:
                raise ConfigurationError(f"{self.backbone} says no image size: set size")
            images = _images(X, size)
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images have {len(labels)} labels: one each is needed")
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
        """The likeliest labels, ``[M]``."""
        places = self.predict_proba(X).argmax(1)
        labels: NDArray[Any] = self.classes_[places]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.backbone is None
        tags.input_tags.three_d_array = self.backbone is not None
        return tags


def _standardising(x: NDArray[np.float64]) -> Backbone:
    """Features with mean 0 and standard deviation 1, as a network."""
    deviation = x.std(0)
    scale = np.where(deviation > 0, deviation, 1.0)
    settings = Preprocessing(None, tuple(x.mean(0).tolist()), tuple(scale.tolist()))
    return Backbone(nn.Identity(), settings, name="features", pool="flatten")


def _as_maps(x: NDArray[np.float64]) -> torch.Tensor:
    """Features ``[M, D]`` as images of one pixel, ``[M, D, 1, 1]``."""
    return torch.tensor(x)[..., None, None]


def _is_images(X: Any) -> bool:
    if isinstance(X, np.ndarray) and X.dtype != object:
        return X.ndim > 2
    if not isinstance(X, Sequence | np.ndarray) or len(X) == 0:
        return False
    return isinstance(X[0], str | Path | Image.Image | np.ndarray)


def _images(X: Any, size: int) -> torch.Tensor:
    """Bytes ``[M, 3, size, size]``."""
    if not _is_images(X):
        raise ValueError("X holds no images: files' paths, Pillow images or arrays [M, H, W, C]")
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
            f"images of type {array.dtype} must have values in [0, 1]; bytes, in 0 to 255"
        )
    return (array * 255).round().astype(np.uint8)
