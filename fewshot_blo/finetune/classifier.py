"""``Classifier``: predicts probabilities and can learn new classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.backbones import Backbone, Preprocessing, load_backbone
from fewshot_blo.backbones.backbone import Pool
from fewshot_blo.bilevel import TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune.album import Album
from fewshot_blo.finetune.calibration import Scale
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.likeness import Known
from fewshot_blo.finetune.refit import corrected, inputs, whole_task, with_classes
from fewshot_blo.kernel import adapt
from fewshot_blo.records.shapes import kind


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
        album: file names and thumbnails of the training images.
        bits: bits in use, at least, of images of 16 bits whose files do not state them.
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
        album: Album = Album(),
        bits: int = 0,
    ) -> None:
        self.backbone, self.source, self.candidate = backbone, source, candidate
        self.image, self.bits = image, bits
        self.problem = candidate.problem(backbone, image)
        self.params = {name: p.detach() for name, p in params.items()}
        self.class_names = tuple(class_names)
        self.features, self.labels = features, labels
        self.scale, self.known, self.album = scale, known, album

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
        return self.judge(embed(self.problem.network, images))

    @torch.no_grad()
    def judge(self, features: Tensor) -> Predictions:
        """Predictions for the head's inputs, ``[M, D]``."""
        scaled = self.logits(features) / self.temperature
        p = self.known.evidence.p_values(scaled.logsumexp(1))
        return Predictions(scaled.softmax(1), p, self.known.is_known(p))

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, N]`` of the head's inputs, ``[M, D]``."""
        own = inputs(self.problem, features[None])
        return self.problem.head.logits(self.params, own, self.problem.outer.head)[0]

    def pretrained(self, features: Tensor) -> Tensor:
        """Features of the pretrained network before adaptation, from the head's inputs."""
        return self.problem.head.unadapted(features)

    def add_class(self, name: str, images: Tensor, files: Sequence[str] = ()) -> None:
        """Learns a new class from images; the parameters of the other classes do not change.

        ``finetune.growing`` does the same to a copy, and says what is doubtful.

        Args:
            name: name of the new class.
            images: its images, uint8 ``[K, C, S, S]``.
            files: their K file names; may be empty.

        Raises:
            ConfigurationError: if the name is taken.
        """
        if name in self.class_names:
            raise ConfigurationError(f"the class '{name}' exists already: choose another name")
        new = len(self.class_names)
        features = torch.cat([self.features, embed(self.problem.network, images)])
        labels = torch.cat([self.labels, torch.full((len(images),), new)])
        names = (*self.class_names, name)
        self.learn(features, labels, names, self.album.plus(images, files), first=new)

    def learn(
        self,
        features: Tensor,
        labels: Tensor,
        class_names: Sequence[str],
        album: Album,
        *,
        first: int = 0,
    ) -> None:
        """Solves for the head again, on other training images.

        Args:
            features: inputs of the head for all training images, ``[M, D]``.
            labels: their labels, ``[M]``, with at least one image of each class.
            class_names: N names.
            album: file names and thumbnails.
            first: the first class to solve for; those before it stay as they are.
        """
        self.params = self.solved(features, labels, first)
        self.features, self.labels, self.album = features, labels, album
        self.class_names = tuple(class_names)

    def solved(self, features: Tensor, labels: Tensor, first: int = 0) -> dict[str, Tensor]:
        """Parameters with the classes from the first one on solved for, as ``learn`` does it."""
        steps = self.candidate.head_steps
        return with_classes(self.problem, self.params, features, labels, steps, self.scale, first)


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
    params = corrected(params, scale.biases(data.counts if counts is None else counts))
    album = Album.of(data.images, data.files, data.labels)
    labels = data.labels
    task = (params, names, features, labels)
    return Classifier(backbone, source, candidate, *task, scale, image, known, album, data.bits)
