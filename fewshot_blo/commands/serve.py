"""``fewshot-blo serve``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune import load_classifier
from fewshot_blo.records.checked import checked
from fewshot_blo.records.files import prepare_folder
from fewshot_blo.records.ranges import AtLeast, Below
from fewshot_blo.records.terminal import shown


@checked
@dataclass(frozen=True)
class ServeRequest:
    """A classifier, and where to serve it.

    Attributes:
        file: the file that finetune wrote.
        own: module:function of the backbone, where it is your own.
        host: name or address to serve on; by default this machine alone can reach the page.
        port: port of the page; 0 takes a free one.
        output: folder of the new versions; by default that of the classifier.
    """

    file: str = ""
    own: str = ""
    host: str = "127.0.0.1"
    port: Annotated[int, AtLeast(0), Below(65536)] = 8000
    output: Path | None = None

    def __post_init__(self) -> None:
        if not self.file:
            raise ConfigurationError("there is no classifier: name a file that finetune wrote")


OPTIONS = Options((ServeRequest,), positional="file")


def run(request: ServeRequest) -> int:
    """Runs it until Ctrl-C; returns the exit status."""
    from fewshot_blo.finetune.serving.run import serve
    from fewshot_blo.finetune.serving.versions import Versions

    if request.output:
        prepare_folder(request.output)
    file = Path(request.file)
    classifier = load_classifier(file, own=request.own)
    print(f"{shown(file)}: {len(classifier.class_names)} classes")
    serve(Versions(classifier, file, request.output), request.host, request.port)
    return 0
