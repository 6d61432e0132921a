"""``fewshot-blo evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.report import evaluate_checkpoints
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.records.checked import checked


@checked
@dataclass(frozen=True)
class Checkpoints:
    """What to evaluate.

    Attributes:
        checkpoints: files written by train; several are compared on the same tasks.
    """

    checkpoints: Sequence[Path] = ()

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise ConfigurationError(
                "there is no checkpoint to evaluate: name files that train wrote"
            )


OPTIONS = Options((EvaluationRequest, Checkpoints), positional="checkpoints")


def run(request: EvaluationRequest, checkpoints: Checkpoints) -> int:
    """Runs it; returns the exit status."""
    evaluate_checkpoints(list(checkpoints.checkpoints), request)
    return 0
