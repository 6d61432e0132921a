"""``fewshot-blo export``."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fewshot_blo.commands.settings import add_classifier, read_classifier
from fewshot_blo.finetune.export import export


def parser() -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(
        description="Write a classifier as a file that needs nothing of this package, and compare "
        "the two."
    )
    add_classifier(options)
    options.add_argument("output", type=Path, help="NAME.onnx, or NAME.pt2 for torch.export")
    return options


def run(parser: ArgumentParser, parsed: Namespace) -> int:
    """Runs it; returns the exit status."""
    del parser
    difference = export(read_classifier(parsed), parsed.output)
    names = f"{parsed.output} and {parsed.output.with_suffix('.json').name}"
    print(f"{names} written; probabilities differ from the classifier's by {difference:.1e}")
    return 0
