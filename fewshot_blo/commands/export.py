"""``fewshot-blo export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewshot_blo.commands.options import Options
from fewshot_blo.commands.predict import image_files
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune import load_classifier
from fewshot_blo.finetune.export import export
from fewshot_blo.finetune.export.module import Resizing
from fewshot_blo.finetune.export.write import written
from fewshot_blo.records.checked import checked
from fewshot_blo.records.terminal import shown


@checked
@dataclass(frozen=True)
class ExportRequest:
    """A classifier and the file to write.

    Attributes:
        files: the file that finetune wrote, and NAME.onnx, or NAME.pt2 for torch.export.
        own: module:function of the backbone, where it is your own.
        resizing: where pictures are cropped and resized; inside the model, which then takes uint8
            pictures of any size, or outside, before it.
        pictures: image file or folder of them, on which the model is compared with the classifier
            besides pictures of its own.
    """

    files: Sequence[Path] = ()
    own: str = ""
    resizing: Resizing = "inside"
    pictures: Path | None = None

    def __post_init__(self) -> None:
        if len(self.files) != 2:
            raise ConfigurationError(
                f"{len(self.files)} files are named: name a classifier, and the file to write"
            )


OPTIONS = Options((ExportRequest,), positional="files")


def run(request: ExportRequest) -> int:
    """Runs it; returns the exit status."""
    file, output = request.files
    pictures = image_files(request.pictures) if request.pictures else []
    classifier = load_classifier(file, own=request.own)
    agreement = export(classifier, output, resizing=request.resizing, pictures=pictures)
    *names, last = map(shown, written(output, request.resizing))
    print(f"{', '.join(names)} and {last} written")
    print(agreement.describe())
    for sentence in agreement.other_labels:
        print(f"  {shown(sentence)}")
    return 0
