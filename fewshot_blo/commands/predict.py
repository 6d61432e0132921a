"""``fewshot-blo predict``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune import Classifier, load_classifier
from fewshot_blo.finetune.files import save_version
from fewshot_blo.finetune.growing import add_class
from fewshot_blo.finetune.images import as_pixels
from fewshot_blo.finetune.labelling import FORMATS, Label, label_files, written
from fewshot_blo.records.checked import checked
from fewshot_blo.records.files import atomic_write, prepare_folder
from fewshot_blo.records.locks import writing
from fewshot_blo.records.progress import Progress
from fewshot_blo.records.ranges import Above, Below
from fewshot_blo.records.terminal import shown
from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.reading.walk import composed, walk


@checked
@dataclass(frozen=True)
class PredictRequest:
    """Images to label, or a class to learn.

    Attributes:
        files: the file that finetune wrote, then image files, or folders of them.
        own: module:function of the backbone, where it is your own.
        output: file to write: NAME.csv, NAME.tsv, NAME.json or NAME.jsonl.
        coverage: probability, as 0.95, with which the set of classes that is then given for each
            image contains the true one; none by default.
        add_class: folder of images of a new class, named as the folder is; what is learned is
            written to a new file beside the old one.
    """

    files: Sequence[Path] = ()
    own: str = ""
    output: Path | None = None
    coverage: Annotated[float, Above(0), Below(1)] | None = None
    add_class: Path | None = None

    def __post_init__(self) -> None:
        if self.output:
            _check_output(self.output)
        if self.coverage is not None and not 0 < self.coverage < 1:
            raise ConfigurationError(f"coverage is {self.coverage}: it must be in (0, 1)")
        if not self.files:
            raise ConfigurationError("there is no classifier: name a file that finetune wrote")
        labels = self.output or self.coverage is not None or not self.add_class
        if len(self.files) == 1 and labels:
            raise ConfigurationError("there are no images to label: name files or folders")


OPTIONS = Options((PredictRequest,), positional="files")


def run(request: PredictRequest) -> int:
    """Runs it; returns the exit status: 1 if an image could not be read."""
    file, *images = request.files
    # What another process adds meanwhile would be lost.
    with writing(file.parent) if request.add_class and file.is_file() else nullcontext():
        classifier = load_classifier(file, own=request.own)
        if request.add_class:
            classifier = _add_class(classifier, request.add_class, file)
    if not images:
        return 0
    found = [_found(path) for path in images]
    files = [file for paths, _ in found for file in paths]
    notes = [sentence for _, sentences in found for sentence in sentences]
    if request.coverage is not None:
        notes += _about_sets(classifier, request.coverage)
    if request.output is None:
        _print(notes)
        labels = _labels(classifier, files, request)
    else:
        prepare_folder(request.output.parent)
        labels = _labels(classifier, files, request)
        try:
            _write(request.output, labels, classifier)
        finally:
            # Only now: whoever reads the lines may close the pipe. Also if the disk is full.
            _print([*notes, *(label.line() for label in labels)])
    return 1 if any(label.error for label in labels) else 0


def _labels(classifier: Classifier, files: Sequence[Path], request: PredictRequest) -> list[Label]:
    """Labels of files; without a file to write they are printed block by block."""
    labels: list[Label] = []
    output = request.output
    with Progress("labelling", len(files), "image") as bar:
        try:
            for block in label_files(classifier, files, request.coverage):
                labels += block
                bar.advance(len(block))
                for label in block if output is None else ():
                    bar.say(label.line())
        except KeyboardInterrupt:
            lost = "" if output is None else f"; {shown(output)} is not written"
            print(f"{len(labels)} of {len(files)} images labelled{lost}", file=sys.stderr)
            raise
    return labels


def _write(output: Path, labels: Sequence[Label], classifier: Classifier) -> None:
    content = written(labels, output.suffix.lower(), classifier.class_names)
    try:
        with atomic_write(output) as file:
            file.write(content)
    except OSError as error:
        raise DataError(
            f"cannot write {output} ({error.strerror}): free disk space or name another file; the "
            "labels are those printed"
        ) from error


def _print(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(shown(sentence))


def _check_output(output: Path) -> None:
    endings = ", ".join(list(FORMATS)[:-1]) + f" or {list(FORMATS)[-1]}"
    if output.is_dir():
        raise ConfigurationError(
            f"output is {output}, a folder: name a file in it whose name ends in {endings}"
        )
    if output.suffix.lower() not in FORMATS:
        raise ConfigurationError(f"output is {output}: its name must end in {endings}")


def _about_sets(classifier: Classifier, coverage: float) -> list[str]:
    """A sentence if so few images were held out that every set holds all classes."""
    images = classifier.known.truth.images
    if not images:
        raise ConfigurationError(
            f"coverage is {coverage}: sets need held-out images, and the classifier has none; "
            "leave coverage out, or fine-tune again with two images or more of a class"
        )
    if 1 / (images + 1) <= 1 - coverage:
        return []
    return [
        f"every set holds all classes: {images} held-out images give sets of a coverage up to "
        f"{images / (images + 1):.3g}"
    ]


def image_files(path: Path) -> list[Path]:
    """The images of a folder, or the file; prints what is passed over."""
    files, notes = _found(path)
    _print(notes)
    return files


def _found(path: Path) -> tuple[list[Path], list[str]]:
    """The images of a folder, or the file, and sentences on what is passed over."""
    if not path.is_dir():
        return [path], []
    found = walk(path)
    if not found.files:
        said = "".join(f" ({sentence})" for sentence in found.notes())
        raise DataError(f"{path} holds no images{said}: name another folder")
    return found.files, found.notes()


def _add_class(classifier: Classifier, folder: Path, file: Path) -> Classifier:
    """The classifier with a class more, which is written beside the earlier file."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is no folder: put the images of the new class into a folder of its name"
        )
    found = image_files(folder)
    images = as_pixels(found, classifier.size, classifier.bits)
    # As finetune names classes; a link has its own name.
    name = composed(folder.absolute().name) or folder.resolve().name
    growth = add_class(classifier, name, images, list(map(str, found)))
    _print(growth.notes)
    version = save_version(growth.classifier, file)
    word = shlex.quote(str(version))
    _print(
        [
            f"{growth.describe()}; {version} written, {file} is unchanged",
            f"next: fewshot-blo predict {word} IMAGES..., or fewshot-blo serve {word}",
        ]
    )
    return growth.classifier
