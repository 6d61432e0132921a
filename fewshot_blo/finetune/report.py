"""Writes the report on a fine-tuned classifier, a self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.cross_validation import HeldOut
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.selection import Selection
from fewshot_blo.records.files import atomic_write

_SHOWN = 24
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d1f", "#555555")


def write_report(
    path: Path, data: LabelledImages, classifier: Classifier, selection: Selection
) -> None:
    """Writes accuracy, candidates, confusion matrix, uncertain images and a map of the features.

    Args:
        path: path of the HTML file.
        data: the training images.
        classifier: the classifier that was fine-tuned on them.
        selection: the results of the candidates and which of them was selected.
    """
    best = selection.held_out[selection.chosen]
    # Names of classes and files may contain anything: all of them are escaped.
    templates = Environment(
        loader=PackageLoader("fewshot_blo.finetune"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = templates.get_template("report.html").render(
        class_names=data.class_names,
        images=len(data.labels),
        network=classifier.source.name,
        size=classifier.size,
        accuracy=_sentence(selection.describe()),
        reason=_sentence(selection.reason),
        held_out=selection.count,
        candidates=list(_candidates(selection)),
        confusion=_confusion(best, len(data.class_names)),
        gallery=list(_gallery(best, data, classifier.temperature)),
        dots=list(_dots(classifier.pretrained(classifier.features), data)),
        colours=[_colour(label) for label in range(len(data.class_names))],
        left_out=data.left_out,
    )
    with atomic_write(path) as file:
        file.write(text.encode())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _candidates(selection: Selection) -> Iterator[dict[str, Any]]:
    for place, held_out in enumerate(selection.held_out):
        yield {
            "name": held_out.candidate.name,
            "right": int(held_out.right.sum()),
            "loss": float(held_out.log_loss().nanmean()),
            "chosen": place == selection.chosen,
        }


def _confusion(held_out: HeldOut, classes: int) -> list[list[int]]:
    """Confusion matrix of the held-out images: rows are classes, columns predictions."""
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    known = held_out.known
    found = held_out.logits[known].argmax(1)
    counts.index_put_((held_out.labels[known], found), torch.tensor(1), accumulate=True)
    rows: list[list[int]] = counts.tolist()
    return rows


def _gallery(
    held_out: HeldOut, data: LabelledImages, temperature: float
) -> Iterator[dict[str, Any]]:
    """Wrong predictions, most confident first, then correct ones, least confident first."""
    probabilities = (held_out.logits / temperature).softmax(1)
    sure, found = probabilities.max(1)
    wrong = (found != held_out.labels) & held_out.known
    order = torch.where(wrong, -1 - sure, sure).masked_fill(~held_out.known, torch.inf).argsort()
    for place in order[: min(_SHOWN, int(held_out.known.sum()))].tolist():
        yield {
            "label": data.class_names[data.labels[place]],
            "taken": data.class_names[found[place]],
            "wrong": bool(wrong[place]),
            "sure": float(sure[place]),
            "file": Path(data.files[place]).name,
            "jpeg": _thumbnail(data.images[place]),
        }


def _thumbnail(image: Tensor) -> str:
    """A small JPEG of the image in base64."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((136, 136))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _dots(features: Tensor, data: LabelledImages) -> Iterator[dict[str, Any]]:
    """Each image at its first two principal components of the features, scaled to [0, 1]."""
    centred = torch.nn.functional.normalize(features.double() - features.double().mean(0))
    rank = min(2, *centred.shape)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    places = torch.nn.functional.pad(u[:, :rank] * s[:rank], (0, 2 - rank))
    low, high = places.amin(0), places.amax(0)
    places = (places - low) / (high - low).clamp(min=1e-12)
    for place, (x, y) in enumerate(places.tolist()):
        label, file = int(data.labels[place]), Path(data.files[place]).name
        yield {"x": x, "y": y, "label": label, "file": file}


def _colour(label: int) -> str:
    if label < len(_COLOURS):
        return _COLOURS[label]
    return f"hsl({label * 137.5 % 360:.0f}, 60%, 45%)"
