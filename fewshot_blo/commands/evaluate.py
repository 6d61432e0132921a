"""``fewshot-blo evaluate``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fewshot_blo.experiments.report import evaluate_checkpoints
from fewshot_blo.experiments.request import EvaluationRequest


def parser() -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(
        description="Accuracy with 95 % intervals in every norm mode; several checkpoints are "
        "compared on the same tasks."
    )
    options.add_argument("checkpoints", nargs="+", type=Path, help="files written by train")
    options.add_class_arguments(EvaluationRequest)
    return options


def run(parser: ArgumentParser, parsed: Namespace) -> int:
    """Runs it; returns the exit status."""
    built = parser.instantiate(parsed)
    request = EvaluationRequest(**{f.name: built[f.name] for f in fields(EvaluationRequest)})
    evaluate_checkpoints(parsed.checkpoints, request)
    return 0
