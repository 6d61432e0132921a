"""Clean-label poisoning: a correctly labelled image causes another one to be misclassified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.backbones import load_backbone
from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, Counting, NonNegative, Pixels
from fewshot_blo.solving.constraints import Box, Constraint
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.images.classifiers import decay, fit_to_the_end
from fewshot_blo.studies.pictures import images
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study
from fewshot_blo.tasks import cifarfs

MISTAKEN, TEST = "targets mistaken %", "test accuracy %"
LOSS, DISTANCE, CHANGE = "loss of targets", "distance of features", "change of pixels"


class _Part(NamedTuple):
    """Images ``[M, 3, 32, 32]`` in [0, 1], features ``[M, D]``, and classes -1 or 1, ``[M]``."""

    x: Tensor
    features: Tensor
    sides: Tensor


@checked
@dataclass(frozen=True)
class CleanLabelPoisoning(Study):
    """One poison image per target, on features r of a pretrained network.

    The classifier is logistic regression of two classes on the standardised features r. A target is
    a test image that it classifies correctly. Its poison image starts as the training image of the
    other class with the nearest features, and is added to the training set with the label of that
    class, which is correct. ``G`` is the mean loss of training images and poison ``+ l2/2 |v|²``,
    which is strongly convex. ``F`` is the loss of the target with the label of the poison image,
    ``+ collision |r(u) - r(target)|² / D + closeness |u - start|²``. Each target has an inner
    problem of its own; all are solved in one batch. Retraining starts at zero weights. A
    first-order hypergradient has the last two terms only, a feature collision that ignores
    training.

    Attributes:
        network: pretrained network, as in ``load_backbone``.
        weights: weight file to use instead of the library's weights.
        size: height and width in pixels to which images are resized.
        classes: names of two classes of CIFAR-100.
        train: training images of each class; the others are test images.
        targets: number of targets, half of them of each class.
        l2: weight of the l2 regularisation.
        collision: weight of the distance of features.
        closeness: weight of the distance of pixels.

    Source: Mehra & Hamm (arXiv 1911.03432), clean-label poisoning, there with dogs and fish and
    InceptionV3; features alone: Shafahi et al., "Poison Frogs!" (arXiv 1804.00792).
    """

    network: str = "torchvision:mobilenet_v3_small"
    weights: str = ""
    size: Pixels = 64
    classes: tuple[str, str] = ("fox", "leopard")
    train: Counting = 450
    targets: Annotated[int, AtLeast(2)] = 10
    l2: NonNegative = 1e-3
    collision: NonNegative = 1.0
    closeness: NonNegative = 1e-2

    def __post_init__(self) -> None:
        if self.targets < 2 or self.targets % 2:
            raise ConfigurationError(
                f"targets is {self.targets}: it must be positive and even, half for each class"
            )

    @cached_property
    def _encoder(self) -> nn.Module:
        backbone = load_backbone(self.network, weights=self.weights or None, size=self.size)
        return backbone.requires_grad_(False)

    @cached_property
    def _pixels(self) -> tuple[_Part, _Part]:
        """Training and test images with the raw features of the network."""
        every = _of_classes(self.root, self.classes)
        fewest = min(map(len, every))
        if not 0 < self.train < fewest:
            raise ConfigurationError(
                f"train is {self.train}: there are {fewest} images of a class; train must be at "
                f"least 1 and less than {fewest}, so that some remain for testing"
            )
        generator = torch.Generator().manual_seed(self.seed)
        mixed = [x[torch.randperm(len(x), generator=generator)] for x in every]
        train = self._encoded([x[: self.train] for x in mixed])
        return train, self._encoded([x[self.train :] for x in mixed])

    @torch.no_grad()
    def _encoded(self, every: list[Tensor]) -> _Part:
        x = torch.cat(every)
        counts = torch.tensor([len(of_class) for of_class in every])
        features = torch.cat([self._encoder(part) for part in torch.split(x, 100)])
        return _Part(x, features, torch.tensor([-1.0, 1.0]).repeat_interleave(counts))

    def _standardised(self, features: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self._pixels[0].features, 0)
        return (features - mean) / (deviation + 1e-6)

    @cached_property
    def _train(self) -> _Part:
        raw = self._pixels[0]
        return raw._replace(features=self._standardised(raw.features))

    @cached_property
    def _divided_test(self) -> tuple[_Part, _Part]:
        """The targets, and the other test images."""
        raw = self._pixels[1]
        test = raw._replace(features=self._standardised(raw.features))
        v = self._fitted(test.features[:0], test.sides[:0])
        right = test.sides * self._logits(v, test.features)[0] > 0
        half = self.targets // 2
        rows = torch.cat([(right & (test.sides == s)).nonzero()[:half, 0] for s in (-1, 1)])
        if len(rows) < self.targets:
            raise ConfigurationError(
                f"targets is {self.targets}: too few test images are classified correctly; lower it"
            )
        others = torch.ones(len(test.sides)).bool()
        others[rows] = False
        return _Part(*(part[rows] for part in test)), _Part(*(part[others] for part in test))

    @cached_property
    def poison(self) -> _Part:
        """Poison before the attack: each target's nearest training image of the other class."""
        targets, train = self._divided_test[0], self._train
        distance = torch.cdist(targets.features, train.features)
        distance[targets.sides[:, None] == train.sides] = torch.inf
        return _Part(*(part[distance.argmin(1)] for part in train))

    def problem(self) -> PlainProblem:
        """The problem; poison starts as images of the other class, v at zero."""
        targets, poison = self._divided_test[0], self.poison

        def inner_loss(v: Params, u: Params) -> Tensor:
            return self._inner_loss(v, self._features(u), poison.sides)

        def outer_loss(v: Params, u: Params) -> Tensor:
            apart = (self._features(u) - targets.features).square().mean(1)
            moved = (u["images"] - poison.x).square().sum((1, 2, 3))
            losses = self._losses_of_targets(v)
            return (losses + self.collision * apart + self.closeness * moved).sum()

        start = {"images": poison.x.clone()}
        return PlainProblem(start, self._zeros(self.targets), inner_loss, outer_loss)

    def constraints(self) -> Mapping[str, Constraint]:
        """Pixels stay in [0, 1]."""
        return {"images": Box(0, 1)}

    def _features(self, u: Params) -> Tensor:
        return self._standardised(self._encoder(u["images"]))

    def _zeros(self, count: int) -> dict[str, Tensor]:
        return {"weight": self._train.features.new_zeros(count, self._train.features.shape[1])}

    def _logits(self, v: Params, features: Tensor) -> Tensor:
        """Logits of the classifiers of all T targets for the same images, ``[T, M]``."""
        return v["weight"] @ features.T

    def _inner_loss(self, v: Params, features: Tensor, sides: Tensor) -> Tensor:
        """Sum of the inner losses of all targets, each with one poison image or none."""
        train = self._train
        losses = F.softplus(-train.sides * self._logits(v, train.features)).sum()
        if len(features):
            losses = losses + F.softplus(-sides * (v["weight"] * features).sum(1)).sum()
        return losses / (len(train.sides) + 1) + self.l2 * decay(v)

    def _losses_of_targets(self, v: Params) -> Tensor:
        """Losses of the targets with the labels of their poison, ``[T]``."""
        logits = (v["weight"] * self._divided_test[0].features).sum(1)
        return F.softplus(-self.poison.sides * logits)

    def _fitted(self, features: Tensor, sides: Tensor) -> Params:
        start = self._zeros(max(1, len(features)))
        return fit_to_the_end(start, lambda v: self._inner_loss(v, features, sides))

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Share of misclassified targets, test accuracy, feature distance and change of pixels."""
        with torch.no_grad():
            features = self._features(outer)
        return {
            AS_FOUND: self._figures(inner, outer["images"], features),
            RETRAINED: self._after_retraining(outer["images"], features),
        }

    def _after_retraining(self, x: Tensor, features: Tensor) -> dict[str, float]:
        return self._figures(self._fitted(features, self.poison.sides), x, features)

    def _figures(self, v: Params, x: Tensor, features: Tensor) -> dict[str, float]:
        targets, others = self._divided_test
        logits = (v["weight"] * targets.features).sum(1)
        right = others.sides * self._logits(v, others.features) > 0
        apart = (features - targets.features).square().mean(1).sqrt()
        return {
            MISTAKEN: 100 * float((targets.sides * logits < 0).double().mean()),
            TEST: 100 * float(right.double().mean()),
            LOSS: float(self._losses_of_targets(v).mean()),
            DISTANCE: float(apart.mean()),
            CHANGE: float((x - self.poison.x).square().mean((1, 2, 3)).sqrt().mean()),
        }

    def baselines(self) -> Mapping[str, Figures]:
        """Training with unchanged poison images; without poison no target is misclassified."""
        x, features, _ = self.poison
        return {"images unchanged": self._after_retraining(x, features)}

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws targets, their poison before and after, and the class they are to be given."""
        pictures = {"target": self._divided_test[0].x, "before": self.poison.x}
        pictures |= {name: u["images"] for name, u in solutions.items()}
        names = [f"as {self.classes[int(side > 0)]}" for side in self.poison.sides]
        rows = {name: x.movedim(1, -1) for name, x in pictures.items()}
        images("Targets and their poison images", rows, names, path)


def _of_classes(root: str, classes: tuple[str, str]) -> list[Tensor]:
    """Images of each class, ``[M, 3, 32, 32]`` in [0, 1]."""
    if not root:
        raise ConfigurationError(
            "root is empty: this study needs the folder of CIFAR-100, so set root"
        )
    every = {name: part for _, part in cifarfs.load(root) for name in part.class_names}
    unknown = [name for name in classes if name not in every]
    if unknown or classes[0] == classes[1]:
        raise ConfigurationError(
            f"classes are {' and '.join(classes)}: they must be two different classes of CIFAR-100"
        )
    positions = [every[name].class_names.index(name) for name in classes]
    parts = [every[name].select([p]) for name, p in zip(classes, positions, strict=True)]
    return [part.images.float() / 255 for part in parts]
