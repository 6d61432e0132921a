"""``fewshot-blo merge``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.measuring import merged
from fewshot_blo.experiments.part_files import read_part
from fewshot_blo.experiments.report import report
from fewshot_blo.records.checked import checked
from fewshot_blo.records.terminal import shown


@checked
@dataclass(frozen=True)
class MergeRequest:
    """Which parts to put together.

    Attributes:
        parts: files that evaluate wrote with --shard, of all parts.
        output: JSON file for all figures, as evaluate writes it.
    """

    parts: Sequence[Path] = ()
    output: Path | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigurationError(
                "there is nothing to merge: name the files that evaluate wrote with --shard"
            )


OPTIONS = Options((MergeRequest,), positional="parts")


def run(request: MergeRequest) -> int:
    """Runs it; returns the exit status."""
    measured = merged([read_part(path) for path in request.parts])
    for sentence in measured.notes:
        print(shown(sentence))
    report(measured, request.output)
    return 0
