"""What the server says about pictures: labels, probabilities and the nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.labelling import Label
from fewshot_blo.finetune.neighbours import Neighbours
from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.reading.images import read_image

_NEAREST = 4


@dataclass(frozen=True)
class Picture:
    """An image file that a client sent.

    Attributes:
        name: its name, which is never used as a path.
        content: its content.
    """

    name: str
    content: bytes


def decoded(pictures: Sequence[Picture], classifier: Classifier) -> Tensor:
    """Pixels ``[K, 3, S, S]`` for a classifier.

    Raises:
        DataError: if a picture cannot be decoded; all that cannot are named.
    """
    pixels, errors = _decoded(pictures, classifier)
    if errors:
        raise DataError("; ".join(errors.values()))
    return torch.from_numpy(np.stack(list(pixels.values())))


@torch.no_grad()
def answers(
    classifier: Classifier, pictures: Sequence[Picture], version: int
) -> list[dict[str, Any]]:
    """A record of each picture, with the values that ``fewshot-blo predict`` gives.

    Args:
        classifier: the classifier.
        pictures: the pictures.
        version: its number, which the addresses of thumbnails contain.

    Returns:
        The record of ``Label``, nearest training images, and error; without an error it is None,
        with one all others are.
    """
    pixels, errors = _decoded(pictures, classifier)
    records = [
        {"file": picture.name, **dict.fromkeys(_FIELDS), "error": errors.get(row)}
        for row, picture in enumerate(pictures)
    ]
    if not pixels:
        return records
    images = torch.from_numpy(np.stack(list(pixels.values())))
    features = embed(classifier.problem.network, images)
    found = classifier.judge(features)
    near = Neighbours(classifier).nearest(features, _NEAREST)
    for place, row in enumerate(pixels):
        label = Label(
            pictures[row].name,
            classifier.class_names,
            tuple(found.probabilities[place].tolist()),
            float(found.likeness[place]),
            bool(found.known[place]),
        )
        nearest = [_neighbour(classifier, *pair, version) for pair in near[place]]
        records[row] |= {**label.record(), "nearest": nearest}
    return records


_FIELDS = ("label", "known", "probability", "likeness", "probabilities", "nearest")


def _neighbour(classifier: Classifier, row: int, similarity: float, version: int) -> dict[str, Any]:
    album = classifier.album
    shown = row < len(album.thumbnails) and album.thumbnails[row]
    return {
        "label": classifier.class_names[int(classifier.labels[row])],
        "file": album.files[row] if album.files else None,
        "similarity": similarity,
        "picture": f"/training/{version}/{row}.jpg" if shown else None,
    }


def _decoded(
    pictures: Sequence[Picture], classifier: Classifier
) -> tuple[dict[int, np.ndarray[Any, np.dtype[np.uint8]]], dict[int, str]]:
    """Pixels by row, and errors of the rows that cannot be decoded."""
    pixels, errors = {}, {}
    for row, picture in enumerate(pictures):
        try:
            pixels[row] = read_image(
                picture.content,
                size=classifier.size,
                color=True,
                name=picture.name,
                bits=classifier.bits,
            )
        except DataError as error:
            errors[row] = str(error)
    return pixels, errors
