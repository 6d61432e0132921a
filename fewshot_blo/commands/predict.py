"""``fewshot-blo predict``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune import Classifier, load_classifier
from fewshot_blo.finetune.export.standalone import NONE
from fewshot_blo.finetune.files import save_version
from fewshot_blo.finetune.growing import add_class
from fewshot_blo.finetune.images import as_pixels
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.tables import comma_separated
from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.reading.images import read_image
from fewshot_blo.tasks.reading.walk import walk


@dataclass(frozen=True)
class PredictRequest:
    """Images to label, or a class to learn.

    Attributes:
        files: the file that finetune wrote, then image files, or folders of them.
        own: module:function of the backbone, where it is your own.
        output: CSV or JSON file to write.
        add_class: folder of images of a new class, named as the folder is; what is learned is
            written to a new file beside the old one.
    """

    files: Sequence[Path] = ()
    own: str = ""
    output: Path | None = None
    add_class: Path | None = None

    def __post_init__(self) -> None:
        if self.output and self.output.suffix not in (".csv", ".json"):
            raise ConfigurationError(f"output is {self.output}: its name must end in .csv or .json")
        if not self.files:
            raise ConfigurationError("there is no classifier: name a file that finetune wrote")
        if len(self.files) == 1 and not self.add_class:
            raise ConfigurationError("there are no images to label: name files or folders")


OPTIONS = Options((PredictRequest,), positional="files")


def run(request: PredictRequest) -> int:
    """Runs it; returns the exit status: 1 if an image could not be read."""
    output = request.output
    file, *images = request.files
    classifier = load_classifier(file, own=request.own)
    if request.add_class:
        classifier = _add_class(classifier, request.add_class, file)
    files = [found for path in images for found in image_files(path)]
    records = predictions(classifier, files) if files else []
    for record in records:
        print(_line(record))
    if output:
        text = _json(records) if output.suffix == ".json" else _csv(records)
        with atomic_write(output) as written:
            written.write(text.encode())
    return 1 if any("error" in record for record in records) else 0


def predictions(classifier: Classifier, files: Sequence[Path]) -> list[dict[str, Any]]:
    """For each file its label, probability, how like known images it is, and all probabilities.

    A file that is no readable image gets an error instead.
    """
    pixels: dict[Path, torch.Tensor] = {}
    records: dict[Path, dict[str, Any]] = {}
    for file in files:
        try:
            pixels[file] = torch.from_numpy(read_image(file, size=classifier.size, color=True))
        except DataError as error:
            records[file] = {"file": str(file), "error": str(error)}
    if pixels:
        found = classifier.predict(torch.stack(list(pixels.values())))
        for row, file in enumerate(pixels):
            probabilities = found.probabilities[row].tolist()
            most_likely = int(np.argmax(probabilities))
            records[file] = {
                "file": str(file),
                "label": classifier.class_names[most_likely] if found.known[row] else NONE,
                "probability": probabilities[most_likely],
                "likeness": float(found.likeness[row]),
                "probabilities": dict(zip(classifier.class_names, probabilities, strict=True)),
            }
    return [records[file] for file in files]


def image_files(path: Path) -> list[Path]:
    """The images of a folder, or the file; prints what is passed over."""
    if not path.is_dir():
        return [path]
    found = walk(path)
    if not found.files:
        said = "".join(f" ({sentence})" for sentence in found.notes())
        raise DataError(f"{path} holds no images{said}: name another folder")
    for sentence in found.notes():
        print(sentence)
    return found.files


def _add_class(classifier: Classifier, folder: Path, file: Path) -> Classifier:
    """The classifier with a class more, which is written beside the earlier file."""
    found = image_files(folder)
    growth = add_class(
        classifier, folder.resolve().name, as_pixels(found, classifier.size), list(map(str, found))
    )
    for note in growth.notes:
        print(note)
    written = save_version(growth.classifier, file)
    print(f"{growth.describe()}; {written} written, {file} is unchanged")
    print(f"next: fewshot-blo predict {written} IMAGES..., or fewshot-blo serve {written}")
    return growth.classifier


def _line(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"{record['file']}: {record['error']}"
    most_likely = max(record["probabilities"], key=record["probabilities"].get)
    percent = f"{100 * record['probability']:.1f} %"
    if record["label"] == NONE:
        return f"{record['file']}: {NONE} (most likely {most_likely}, {percent})"
    return f"{record['file']}: {record['label']} {percent}"


def _json(records: Sequence[dict[str, Any]]) -> str:
    return json.dumps(records, indent=2, ensure_ascii=False) + "\n"


def _csv(records: Sequence[dict[str, Any]]) -> str:
    return comma_separated(
        [
            {**{k: v for k, v in r.items() if k != "probabilities"}, **r.get("probabilities", {})}
            for r in records
        ]
    )
