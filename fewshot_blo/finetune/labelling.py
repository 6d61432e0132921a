"""Labels of image files, in blocks, and how they are written: lines, CSV, TSV, JSON, JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.export.standalone import NONE
from fewshot_blo.records.tables import comma_separated
from fewshot_blo.records.terminal import shown
from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.reading.images import read_image

_BLOCK = 256
"""Number of images that are in memory at a time."""


@dataclass(frozen=True)
class Label:
    """What a classifier says about an image file, or why it could not be read.

    Attributes:
        file: path of the file.
        classes: names of the N classes.
        probabilities: probabilities of the classes, N; empty if the file could not be read.
        likeness: conformal p-value of being of one of the classes.
        known: whether that is high enough.
        coverage: coverage of the prediction set; None for no set.
        inside: names of the classes of the prediction set, most likely first.
        error: why the file could not be read; empty if it could.
    """

    file: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    likeness: float = 0.0
    known: bool = True
    coverage: float | None = None
    inside: tuple[str, ...] = ()
    error: str = ""

    @property
    def most_likely(self) -> str:
        """Name of the most likely class."""
        return self.classes[int(np.argmax(self.probabilities))]

    @property
    def label(self) -> str:
        """Name of the most likely class, or "none of these"; a class may also have this name."""
        return self.most_likely if self.known else NONE

    def record(self) -> dict[str, Any]:
        """For JSON: names of classes are values, or keys of ``probabilities`` alone."""
        if self.error:
            return {"file": self.file, "error": self.error}
        chosen = {} if self.coverage is None else {"set": list(self.inside)}
        return {
            "file": self.file,
            "label": self.label,
            "known": self.known,
            "probability": max(self.probabilities),
            "likeness": self.likeness,
            **chosen,
            "probabilities": dict(zip(self.classes, self.probabilities, strict=True)),
        }

    def row(self) -> dict[str, Any]:
        """For CSV: the column of a class is p: and its name, and a set is a JSON list."""
        record = self.record()
        probabilities = record.pop("probabilities", {})
        if "known" in record:
            record["known"] = str(self.known).lower()
        if "set" in record:
            record["set"] = json.dumps(record["set"], ensure_ascii=False)
        return {**record, **{_column(name): p for name, p in probabilities.items()}}

    def line(self) -> str:
        """For a person."""
        if self.error:
            return shown(self.error if self.file in self.error else f"{self.file}: {self.error}")
        name = f"the class '{NONE}'" if self.most_likely == NONE else self.most_likely
        percent = f"{100 * max(self.probabilities):.1f} %"
        said = f"{name} {percent}" if self.known else f"{NONE} (most likely {name}, {percent})"
        if self.coverage is not None:
            said += f"; {100 * self.coverage:g} % set: {', '.join(self.inside)}"
        return shown(f"{self.file}: {said}")


def label_files(
    classifier: Classifier, files: Sequence[Path], coverage: float | None = None
) -> Iterator[list[Label]]:
    """Labels of image files, a block at a time.

    Args:
        classifier: the classifier.
        files: the image files.
        coverage: coverage of prediction sets; None for none.
    """
    for start in range(0, len(files), _BLOCK):
        yield _block(classifier, files[start : start + _BLOCK], coverage)


def _block(classifier: Classifier, files: Sequence[Path], coverage: float | None) -> list[Label]:
    pixels: list[NDArray[np.uint8]] = []
    labels: list[Label | int] = []
    for file in files:
        try:
            pixels.append(read_image(file, size=classifier.size, color=True, bits=classifier.bits))
            labels.append(len(pixels) - 1)
        except DataError as error:
            labels.append(Label(str(file), error=str(error)))
    if not pixels:
        return [label for label in labels if not isinstance(label, int)]
    found = classifier.predict(torch.from_numpy(np.stack(pixels)))
    sets = None if coverage is None else classifier.known.sets(found.probabilities, coverage)

    def judged(file: Path, row: int) -> Label:
        probabilities = found.probabilities[row]
        order = probabilities.argsort(descending=True).tolist()
        inside = () if sets is None else tuple(n for n in order if sets[row, n])
        return Label(
            str(file),
            classifier.class_names,
            tuple(probabilities.tolist()),
            float(found.likeness[row]),
            bool(found.known[row]),
            coverage,
            tuple(classifier.class_names[n] for n in inside),
        )

    return [
        judged(file, label) if isinstance(label, int) else label
        for file, label in zip(files, labels, strict=True)
    ]


def written(labels: Sequence[Label], suffix: str, classes: Sequence[str]) -> bytes:
    """The content of a file of labels.

    Args:
        labels: the labels.
        suffix: the ending of the file's name, one of ``FORMATS``.
        classes: names of the classes.
    """
    # Letters that UTF-8 lacks, of file names that are no text, are escaped as JSON does.
    return FORMATS[suffix](labels, classes).encode(errors="backslashreplace")


def _column(name: str) -> str:
    return f"p:{name}"


def _separated(separator: str) -> Callable[[Sequence[Label], Sequence[str]], str]:
    def table(labels: Sequence[Label], classes: Sequence[str]) -> str:
        chosen = ["set"] if any(label.coverage is not None for label in labels) else []
        fixed = ["file", "label", "known", "probability", "likeness", *chosen, "error"]
        columns = [*fixed, *map(_column, classes)]
        return comma_separated([label.row() for label in labels], columns, separator=separator)

    return table


def _json(labels: Sequence[Label], classes: Sequence[str]) -> str:
    del classes  # Each record names its own.
    return json.dumps([label.record() for label in labels], indent=2, ensure_ascii=False) + "\n"


def _json_lines(labels: Sequence[Label], classes: Sequence[str]) -> str:
    del classes
    return "".join(json.dumps(label.record(), ensure_ascii=False) + "\n" for label in labels)


FORMATS: dict[str, Callable[[Sequence[Label], Sequence[str]], str]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".json": _json,
    ".jsonl": _json_lines,
}
"""How labels are written, by the ending of the file's name."""
