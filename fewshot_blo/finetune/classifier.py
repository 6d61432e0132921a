"""A fine-tuned classifier: labels with probabilities, one file, new classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.backbones import Backbone, Preprocessing, load_backbone
from fewshot_blo.backbones.backbone import Pool
from fewshot_blo.bilevel import Bilevel, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.likeness import is_known, p_values
from fewshot_blo.heads.head import SupportSet, has_class_axis, normalize
from fewshot_blo.heads.losses import task_cross_entropy
from fewshot_blo.kernel import adapt
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.records.shapes import kind
from fewshot_blo.tasks import TaskBatch


@dataclass(frozen=True)
class Source:
    """Where a backbone comes from, so that a file can build it again.

    Attributes:
        name, layer, pool: as in ``load_backbone``.
    """

    name: str
    layer: str = ""
    pool: Pool | None = None

    def load(self, preprocessing: Preprocessing | None = None, **settings: Any) -> Backbone:
        """The backbone.

        Raises:
            CheckpointError, ConfigurationError: as ``load_backbone``.
        """
        backbone = load_backbone(self.name, layer=self.layer, pool=self.pool, **settings)
        if preprocessing is None:
            return backbone
        return backbone.preprocessed(**asdict(preprocessing))


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of M images.

    Attributes:
        probabilities: calibrated, ``[M, N]``.
        likeness: p-value of each image being like those of its likeliest class, ``[M]``.
        known: whether it is like them, ``[M]``: else it is none of the classes.
    """

    probabilities: Tensor
    likeness: Tensor
    known: Tensor

    def __repr__(self) -> str:
        images, classes = self.probabilities.shape
        return (
            f"Predictions({images} images, {classes} classes, {images - int(self.known.sum())} "
            f"images like none of them, {kind(self.probabilities)})"
        )


class Classifier:
    """A backbone, what was adapted of it, and a head.

    Args:
        backbone: the pretrained network.
        source: where it comes from.
        candidate: how it was fine-tuned.
        params: inner parameters of one task, ``[1, ...]``.
        class_names: N names.
        features: of the training images, as the head takes them, ``[M, D]``.
        labels: of these, ``[M]``.
        temperature: that logits are divided by.
        image: ``[C, S, S]`` of the images.
    """

    def __init__(
        self,
        backbone: Backbone,
        source: Source,
        candidate: Candidate,
        params: TaskParams,
        class_names: Sequence[str],
        features: Tensor,
        labels: Tensor,
        temperature: float,
        image: torch.Size,
    ) -> None:
        self.backbone, self.source, self.candidate = backbone, source, candidate
        self.image = image
        self.problem = candidate.problem(backbone, image)
        self.params = {name: p.detach() for name, p in params.items()}
        self.class_names = tuple(class_names)
        self.features, self.labels = features, labels
        self.temperature = temperature

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:8]) + (", ..." if len(self.class_names) > 8 else "")
        return (
            f"Classifier({len(self.class_names)} classes: {names}\n"
            f"  {self.source.name}, fine-tuned by '{self.candidate.name}' on {len(self.labels)} "
            f"images {list(self.image)}, {kind(self.features)}, temperature {self.temperature:.3g})"
        )

    @property
    def size(self) -> int:
        """Pixels that an image is high and wide."""
        return self.image[-1]

    @torch.no_grad()
    def predict(self, images: Tensor) -> Predictions:
        """Probabilities of images, uint8 ``[M, C, S, S]``."""
        features = embed(self.problem.network, images)
        logits = self.logits(features)
        p = p_values(self.pretrained(features), self.pretrained(self.features), self.labels)
        known = is_known(p, len(self.labels))
        return Predictions((logits / self.temperature).softmax(1), p, known)

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, N]`` of features as the head takes them."""
        own = self._scaled(features[None])
        return self.problem.head.logits(self.params, own, self.problem.outer.head)[0]

    def pretrained(self, features: Tensor) -> Tensor:
        """Features of the whole network before anything of it was adapted."""
        return self.problem.head.unadapted(features)

    @torch.no_grad()
    def add_class(self, name: str, images: Tensor) -> None:
        """Learns a new class from images, uint8 ``[K, C, S, S]``; all else stays as it is.

        Its weights start from the mean of its images and take the head's steps with those of the
        other classes held fixed. Ridge regression has its solution for all classes side by side, so
        there the new class's column is solved for and the others keep theirs.

        Raises:
            ConfigurationError: if the name is taken.
        """
        if name in self.class_names:
            raise ConfigurationError(f"there is a class '{name}' already: choose another name")
        new = len(self.class_names)
        features = torch.cat([self.features, embed(self.problem.network, images)])
        labels = torch.cat([self.labels, torch.full((len(images),), new)])
        support = SupportSet(features[None], labels[None], torch.arange(new + 1)[None])
        given = replace(support, features=self._scaled(support.features))
        weights = self.problem.head.class_weights(self.params, given, self.problem.outer.head)
        own = {n: p[:, new:] for n, p in weights.items()}
        fixed = {n: p for n, p in self.params.items() if not has_class_axis(n)}
        old = {n: p for n, p in self.params.items() if has_class_axis(n)}

        def joined(v: TaskParams) -> dict[str, Tensor]:
            return {**fixed, **{n: torch.cat([old[n], v[n]], 1) for n in old}}

        def loss(v: TaskParams) -> Tensor:
            logits = self.problem.head.logits(joined(v), given.features, self.problem.outer.head)
            return task_cross_entropy(logits, support.labels, support.classes)

        own = adapt(loss, own, self.candidate.head_steps)
        self.params = joined(own)
        self.features, self.labels = features, labels
        self.class_names = (*self.class_names, name)

    def _scaled(self, features: Tensor) -> Tensor:
        """Features as the problem hands them to its head."""
        return normalize(features) if self.problem.head.scaled else features


def fit_classifier(
    candidate: Candidate,
    backbone: Backbone,
    source: Source,
    data: LabelledImages,
    features: Tensor,
    temperature: float,
) -> Classifier:
    """Fine-tunes on all images.

    Args:
        candidate: how.
        backbone: what.
        source: where it comes from.
        data: on what.
        features: of its images, from the network of the candidate's problem.
        temperature: of the held-out logits.
    """
    problem = candidate.problem(backbone, data.images.shape[1:])
    bilevel = whole_task(problem, features, data.labels, len(data.class_names))
    with torch.no_grad():
        params = adapt(bilevel.inner_loss, bilevel.inner_init, candidate.inner, outer=bilevel.outer)
    names = data.class_names
    image = data.images.shape[1:]
    return Classifier(
        backbone, source, candidate, params, names, features, data.labels, temperature, image
    )


def whole_task(problem: SharedEncoder, features: Tensor, labels: Tensor, ways: int) -> Bilevel:
    """The inner problem of one task whose support set is all images, on their features."""
    x, y = features[None], labels[None]
    batch = TaskBatch(x, y, x[:, :1], y[:, :1], torch.arange(ways)[None])
    return problem.on_features().bind(batch, "support").bilevel
