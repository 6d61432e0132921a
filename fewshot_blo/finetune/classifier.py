"""``Classifier``: predicts probabilities and can learn new classes."""

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
from fewshot_blo.finetune.calibration import Scale
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.likeness import Known
from fewshot_blo.heads.head import SupportSet, has_class_axis, normalize
from fewshot_blo.heads.losses import task_cross_entropy
from fewshot_blo.kernel import adapt
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.records.shapes import kind
from fewshot_blo.tasks import TaskBatch


@dataclass(frozen=True)
class Source:
    """Arguments of ``load_backbone``, from which a saved classifier builds its backbone again.

    Attributes:
        name, layer, pool: as in ``load_backbone``.
    """

    name: str
    layer: str = ""
    pool: Pool | None = None

    def load(self, preprocessing: Preprocessing | None = None, **settings: Any) -> Backbone:
        """Loads the backbone.

        Args:
            preprocessing: replaces the backbone's own preprocessing; None keeps it.
            settings: further arguments of ``load_backbone``.

        Raises:
            CheckpointError, ConfigurationError: as ``load_backbone``.
        """
        if preprocessing is not None:
            settings.setdefault("size", preprocessing.size)
        backbone = load_backbone(self.name, layer=self.layer, pool=self.pool, **settings)
        if preprocessing is None:
            return backbone
        return backbone.preprocessed(**asdict(preprocessing))


@dataclass(frozen=True)
class Predictions:
    """Predictions for M images.

    Attributes:
        probabilities: probabilities of the N classes, ``[M, N]``.
        likeness: conformal p-value of each image: the share of held-out training images that are
            at most as similar to the classes as this one, ``[M]``.
        known: whether the p-value is high enough for one of the classes, ``[M]``; False means none
            of them. Always True where strangers cannot be told from images of the classes.
    """

    probabilities: Tensor
    likeness: Tensor
    known: Tensor

    def __repr__(self) -> str:
        images, classes = self.probabilities.shape
        return (
            f"Predictions({images} images, {classes} classes, {images - int(self.known.sum())} "
            f"images of none of them, {kind(self.probabilities)})"
        )


class Classifier:
    """A backbone with its adapted parameters and a head.

    Args:
        backbone: the pretrained network.
        source: arguments from which the backbone is built again.
        candidate: the way it was fine-tuned.
        params: adapted inner parameters of one task, ``[1, ...]`` each.
        class_names: N names.
        features: inputs of the head for the training images, ``[M, D]``.
        labels: labels of the training images, ``[M]``.
        scale: temperature of the logits, and the correction for the sizes of classes, which the
            biases in ``params`` contain already.
        image: shape of one image, ``[C, S, S]``.
        known: what held-out images of known classes look like; nothing by default, and then no
            image is flagged as none of the classes.
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
        scale: Scale,
        image: torch.Size,
        known: Known = Known(),
    ) -> None:
        self.backbone, self.source, self.candidate = backbone, source, candidate
        self.image = image
        self.problem = candidate.problem(backbone, image)
        self.params = {name: p.detach() for name, p in params.items()}
        self.class_names = tuple(class_names)
        self.features, self.labels = features, labels
        self.scale, self.known = scale, known

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:8]) + (", ..." if len(self.class_names) > 8 else "")
        return (
            f"Classifier({len(self.class_names)} classes: {names}\n"
            f"  {self.source.name}, fine-tuned by '{self.candidate.name}' on {len(self.labels)} "
            f"images {list(self.image)}, {kind(self.features)}, temperature {self.temperature:.3g})"
        )

    @property
    def temperature(self) -> float:
        """Divisor of the logits."""
        return self.scale.temperature

    @property
    def size(self) -> int:
        """S, height and width of the images in pixels."""
        return self.image[-1]

    @torch.no_grad()
    def predict(self, images: Tensor) -> Predictions:
        """Predictions for images, uint8 ``[M, C, S, S]``."""
        features = embed(self.problem.network, images)
        scaled = self.logits(features) / self.temperature
        p = self.known.evidence.p_values(scaled.logsumexp(1))
        return Predictions(scaled.softmax(1), p, self.known.is_known(p))

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, N]`` of the head's inputs, ``[M, D]``."""
        own = self._scaled(features[None])
        return self.problem.head.logits(self.params, own, self.problem.outer.head)[0]

    def pretrained(self, features: Tensor) -> Tensor:
        """Features of the pretrained network before adaptation, from the head's inputs."""
        return self.problem.head.unadapted(features)

    @torch.no_grad()
    def add_class(self, name: str, images: Tensor) -> None:
        """Learns a new class from images, uint8 ``[K, C, S, S]``; other parameters do not change.

        The weights of the new class start from the mean of its features and take the head's inner
        steps, while those of the other classes are fixed. In ridge regression the classes are
        independent, so that only the column of the new class is solved for.

        Args:
            name: name of the new class.
            images: its images.

        Raises:
            ConfigurationError: if the name is taken.
        """
        if name in self.class_names:
            raise ConfigurationError(f"the class '{name}' exists already: choose another name")
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
        counts = torch.bincount(labels, minlength=new + 1)
        self.params = _corrected(joined(own), self.scale.biases(counts)[new:], new)
        self.features, self.labels = features, labels
        self.class_names = (*self.class_names, name)

    def _scaled(self, features: Tensor) -> Tensor:
        """Features, normalised if the head expects it."""
        return normalize(features) if self.problem.head.scaled else features


def fit_classifier(
    candidate: Candidate,
    backbone: Backbone,
    source: Source,
    data: LabelledImages,
    features: Tensor,
    scale: Scale,
    known: Known = Known(),
    *,
    counts: Tensor | None = None,
) -> Classifier:
    """Fine-tunes on all images.

    Args:
        candidate: the way to fine-tune.
        backbone: the pretrained network.
        source: arguments from which the backbone is built again.
        data: the M labelled images.
        features: outputs of the network of the candidate's problem for the images, ``[M, D]``.
        scale: temperature and correction for the sizes of classes, fitted on held-out logits.
        known: what held-out images of known classes look like.
        counts: number of images of each class, ``[N]``, where near-duplicates count once; by
            default all count.
    """
    problem = candidate.problem(backbone, data.images.shape[1:])
    bilevel = whole_task(problem, features, data.labels, len(data.class_names))
    with torch.no_grad():
        params = adapt(bilevel.inner_loss, bilevel.inner_init, candidate.inner, outer=bilevel.outer)
    names = data.class_names
    image = data.images.shape[1:]
    params = _corrected(params, scale.biases(data.counts if counts is None else counts), 0)
    return Classifier(
        backbone, source, candidate, params, names, features, data.labels, scale, image, known
    )


def _corrected(params: TaskParams, biases: Tensor, first: int) -> dict[str, Tensor]:
    """Parameters with corrections added to the biases from the first class on.

    Heads without biases, which older files have, are not corrected.
    """
    if "head.bias" not in params:
        return dict(params)
    bias = params["head.bias"].clone()
    bias[:, first:] += biases.to(bias)
    return {**params, "head.bias": bias}


def whole_task(problem: SharedEncoder, features: Tensor, labels: Tensor, ways: int) -> Bilevel:
    """The inner problem of one task whose support set is all images, given by their features.

    Args:
        problem: the problem of a candidate.
        features: features of the images, ``[M, D]``.
        labels: labels of the images, ``[M]``.
        ways: N, the number of classes.
    """
    x, y = features[None], labels[None]
    batch = TaskBatch(x, y, x[:, :1], y[:, :1], torch.arange(ways)[None])
    return problem.on_features().bind(batch, "support").bilevel
