"""Puts the report together: what is shown, how much of it, and the file."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.report.answers import MARGIN, Answers, answers_of
from fewshot_blo.finetune.report.feature_map import (
    COLOURS,
    SHAPES,
    feature_map,
    importance,
    mark,
)
from fewshot_blo.finetune.report.suspects import NEAREST, OWN, SURE, suspects
from fewshot_blo.finetune.report.tables import (
    candidate_rows,
    class_rows,
    duplicate_groups,
    largest_confusions,
    shades,
)
from fewshot_blo.finetune.report.thumbnails import LARGE, SMALL, Thumbnails
from fewshot_blo.finetune.selection import Selection
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.terminal import shown

_BYTES = 3_600_000
"""All thumbnails together: text included, the file stays under about 5 MB."""
_LIMITS = {
    "wrong": 48,
    "doubtful": 24,
    "suspects": 24,
    "groups": 12,
    "members": 6,
    "confusions": 15,
    "sentences": 100,
}
"""How many of each are shown; the report says how many more there are."""
_MANY = 12
"""Number of classes above which the largest confusions are listed too."""


@dataclass(frozen=True)
class Origin:
    """What the classifier and the images do not say about themselves.

    Attributes:
        data: folder or table that the images were read from.
        file: file that the classifier is saved in.
        command: words of the command that was run; may be empty.
        weights: file of the backbone's weights; empty for the library's own.
        versions: versions of the software, as a sentence without its full stop.
    """

    data: str
    file: Path
    command: tuple[str, ...] = ()
    weights: str = ""
    versions: str = ""


def write_report(
    path: Path,
    data: LabelledImages,
    classifier: Classifier,
    selection: Selection,
    origin: Origin,
) -> None:
    """Writes the report.

    It has the accuracy to expect, figures of each class, a confusion matrix, wrong and doubtful
    images, labels that may be wrong, near-duplicates, a map of the features, and the candidates.
    The file has no script and loads nothing.

    Args:
        path: path of the HTML file.
        data: the training images.
        classifier: the classifier that was fine-tuned on them.
        selection: the results of the candidates and which of them was selected.
        origin: where they come from.
    """
    text = _render(data, classifier, selection, origin)
    with atomic_write(path) as file:
        file.write(text.encode())


def _render(
    data: LabelledImages, classifier: Classifier, selection: Selection, origin: Origin
) -> str:
    # Names of classes and files may contain anything: whatever is printed is escaped.
    templates = Environment(
        loader=PackageLoader("fewshot_blo.finetune.report"),
        autoescape=True,
        finalize=_printed,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters.update(sentence=sentence, name=lambda file: Path(file).name)
    answers = answers_of(selection.best)
    features = classifier.pretrained(classifier.features)
    points = feature_map(features, answers.wrong)
    style = "\n" + templates.get_template("report.css").render() + points.style() + "\n"
    thumbnails = Thumbnails(data.images, _BYTES)
    context = {
        "data": data,
        "classifier": classifier,
        "selection": selection,
        "promise": selection.promise,
        "origin": origin,
        "date": datetime.now().astimezone().isoformat(" ", "minutes"),
        "command": _quoted(origin.command),
        "next": _next(origin),
        "style": Markup(style),  # Of our own rules and numbers alone.
        "policy": _policy(style),
        "limits": _LIMITS,
        "names": data.class_names,
        "answers": answers,
        **_tables(data, answers, selection),
        **_images(data, answers, suspects(answers, features, data.groups), thumbnails),
        # Last, for they take what the others leave of the bytes.
        "points": points,
        "dots": _dots(points.rows, importance(answers.wrong).tolist(), thumbnails),
        "marks": [mark(label) for label in range(len(data.class_names))],
        "different": COLOURS * SHAPES,
    }
    return templates.get_template("report.html").render(context)


def _printed(value: object) -> object:
    """What a template prints: text as it can be seen, our own markup as it is."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _policy(style: str) -> str:
    """Content security policy: this style, images in the file itself, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


def _quoted(words: Sequence[str]) -> list[str]:
    """Words as a shell needs them."""
    return [shlex.quote(word) for word in words]


def _next(origin: Origin) -> list[tuple[str, list[str]]]:
    """What each of the next commands does, and its words."""
    file, folder = str(origin.file), origin.file.parent
    labels, model = str(folder / "labels.csv"), str(folder / "model.onnx")
    return [
        (
            "Label images (replace IMAGES by files or folders)",
            _quoted(["fewshot-blo", "predict", file, "IMAGES", "--output", labels]),
        ),
        ("Try it in a browser", _quoted(["fewshot-blo", "serve", file])),
        (
            "Write it as a file that needs nothing of this package",
            _quoted(["fewshot-blo", "export", file, model]),
        ),
    ]


def _tables(data: LabelledImages, answers: Answers, selection: Selection) -> dict[str, Any]:
    names, counts = data.class_names, answers.confusion()
    pairs = largest_confusions(names, counts) if len(names) > _MANY else []
    return {
        "rows": class_rows(data, answers, selection),
        "confusion": counts,
        "shades": shades(counts),
        "pairs": pairs,
        "candidates": candidate_rows(selection),
    }


def _images(
    data: LabelledImages, answers: Answers, suspicious: Sequence[Any], thumbnails: Thumbnails
) -> dict[str, Any]:
    """The images that are shown outside the map, and how many there are in all."""
    wrong, doubtful = answers.wrong_rows(), answers.doubtful_rows()
    groups = duplicate_groups(data)
    some = suspicious[: _LIMITS["suspects"]]
    members = [rows[: _LIMITS["members"]] for rows in groups[: _LIMITS["groups"]]]
    listed = wrong[: _LIMITS["wrong"]] + doubtful[: _LIMITS["doubtful"]]
    large = dict.fromkeys([*(s.row for s in some), *listed, *(r for rows in members for r in rows)])
    return {
        "wrong": wrong,
        "doubtful": doubtful,
        "suspects": suspicious,
        "groups": groups,
        "thumbnails": {row: thumbnails(row, LARGE) for row in large},
        "nearest": {row: thumbnails(row, SMALL) for s in some for row in s.nearest},
        "rules": {"sure": SURE, "own": OWN, "nearest": NEAREST, "margin": MARGIN},
    }


def _dots(rows: Sequence[int], order: Sequence[int], thumbnails: Thumbnails) -> dict[int, str]:
    """Thumbnails of the images on the map, by row; empty where no bytes are left."""
    drawn = set(rows)
    return {row: thumbnails(row, SMALL) for row in order if row in drawn}


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop, and no line break before a per cent sign."""
    return (text[:1].upper() + text[1:] + ".").replace(" %", "\u00a0%") if text else ""
