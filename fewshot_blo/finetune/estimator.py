"""``FewShotClassifier``: fine-tuning as a scikit-learn estimator."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from fewshot_blo.backbones import Adapts, Backbone, Preprocessing, Views
from fewshot_blo.errors import installed_by
from fewshot_blo.finetune.classifier import Source
from fewshot_blo.finetune.fit import fit
from fewshot_blo.finetune.images import LabelledImages, as_pixels
from fewshot_blo.finetune.labelled_folder import read_labelled
from fewshot_blo.finetune.near_duplicates import near_duplicates
from fewshot_blo.tasks.reading.images import common_bits
from fewshot_blo.tasks.reading.several import several

with installed_by(".[sklearn]"):
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data

_validated: Callable[..., Any] = validate_data
"""scikit-learn has no types: type checkers take its defaults' types for its arguments'."""


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Few-shot image classifier: ``FewShotClassifier().fit(images, labels).predict(images)``.

    Images are a list or array of file paths, Pillow images, contents of files, arrays ``[H, W]`` or
    ``[H, W, C]`` or tensors ``[C, H, W]``, or an array ``[M, H, W, C]`` or ``[M, H, W]``, of
    integers (``depth.narrow`` says of how many bits) or of floating-point numbers in [0, 1]. X may
    also be the path of a folder; ``fit`` then reads the classes from it as ``read_labelled`` does,
    without y. Without a backbone X is an array of features ``[M, D]``, such as the output of
    earlier steps in a Pipeline, and only heads are fitted.

    Args:
        backbone: torchvision:NAME, timm:NAME, hf:NAME or module:function; None for features.
        weights: weight file to use instead of the library's weights.
        size: height and width of the images in pixels; None for that of the network's training.
        adapts: parameters that adapt; "auto" selects by cross-validation.
        views: views of each image: one, mirrored (two), scales (three), shifts (nine), crops (ten)
            or mirrored_shifts (18); "auto" selects by cross-validation.
        minutes: time to choose in; candidates that would not fit are left out with a warning that
            names them. None for no limit.

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
        minutes: float | None = None,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.size = size
        self.adapts: Adapts | Literal["auto"] = adapts
        self.views: Views | Literal["auto"] = views
        self.minutes = minutes

    def fit(self, X: Any, y: ArrayLike | None = None) -> FewShotClassifier:
        """Selects the way to fine-tune by cross-validation, then fine-tunes on all images.

        Images of a class that are nearly the same are held out together.

        Args:
            X: the images, or the path of a folder of them.
            y: their labels, ``[M]``; None for a folder that says the classes.

        Raises:
            ValueError: if X and y have different lengths, y has one class or is None for images
                without a folder, or X holds no images.
            ConfigurationError: if the backbone has no default image size and ``size`` is None.
        """
        source = Source(self.backbone or "features")
        if self.backbone is None:
            X, y = _validated(self, X, y, dtype=np.float64)
            data = self._labelled(_as_maps(X), y)
            network = _standardising(X)
        else:
            network = source.load(weights=self.weights, size=self.size)
            size = network.size
            data = self._of_folder(X, size) if y is None else self._labelled(X, y, size)
        adapts = "head" if self.backbone is None else self.adapts
        views = "one" if self.backbone is None else self.views
        self.model_, selection = fit(
            data,
            network,
            source,
            adapts=adapts,
            views=views,
            minutes=self.minutes,
            progress=False,
        )
        self.accuracy_ = selection.accuracy
        return self

    def _labelled(self, X: Any, y: Any, size: int = 0) -> LabelledImages:
        """Images to decode to this size, or features where it is 0, with their labels."""
        check_classification_targets(y)
        self.classes_, labels = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, '{self.classes_[0]}': it must have at least 2")
        sources = several(X) if size else []
        bits = common_bits(sources)[0]
        images = as_pixels(sources, size, bits) if size else X
        if len(images) != len(labels):
            raise ValueError(
                f"X has {len(images)} images and y {len(labels)} labels: the numbers must be equal"
            )
        order = torch.from_numpy(np.argsort(labels, kind="stable"))
        images, target = images[order], torch.from_numpy(labels.astype(np.int64))[order]
        names = tuple(map(str, self.classes_))
        groups = near_duplicates(images, target)[0] if size else torch.arange(len(images))
        return LabelledImages(images, target, names, (), groups=groups, bits=bits)

    def _of_folder(self, X: Any, size: int) -> LabelledImages:
        """The images of a folder, whose classes are its own; warns of what is passed over."""
        if not isinstance(X, str | Path):
            raise ValueError(
                f"y is None and X a {type(X).__name__}: give the labels, or the path of a folder "
                "with a subfolder of images a class"
            )
        data = read_labelled(X, size)
        self.classes_ = np.array(data.class_names)
        if data.notes or data.left_out:
            warnings.warn("\n".join((*data.notes, *data.left_out)), stacklevel=3)
        return data

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities ``[M, N]``, calibrated on held-out images where classes have several."""
        check_is_fitted(self)
        if self.backbone is None:
            images = _as_maps(_validated(self, X, dtype=np.float64, reset=False))
        else:
            images = as_pixels(X, self.model_.size, self.model_.bits)
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
