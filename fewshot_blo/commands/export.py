"""``fewshot-blo export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune import load_classifier
from fewshot_blo.finetune.export import export


@dataclass(frozen=True)
class ExportRequest:
    """A classifier and the file to write.

    Attributes:
        files: the file that finetune wrote, and NAME.onnx, or NAME.pt2 for torch.export.
        own: module:function of the backbone, where it is your own.
    """

    files: Sequence[Path] = ()
    own: str = ""

    def __post_init__(self) -> None:
        if len(self.files) != 2:
            raise ConfigurationError(
                f"{len(self.files)} files are named: name a classifier, and the file to write"
            )


OPTIONS = Options((ExportRequest,), positional="files")


def run(request: ExportRequest) -> int:
    """Runs it; returns the exit status."""
    classifier, output = request.files
    difference = export(load_classifier(classifier, own=request.own), output)
    names = f"{output} and {output.with_suffix('.json').name}"
    print(f"{names} written; probabilities differ from the classifier's by {difference:.1e}")
    return 0
