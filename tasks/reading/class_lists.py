"""The published class lists of each split, which ship with the package."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "splits"
SPLITS = ("train", "val", "test")


def published() -> set[str]:
    """Names of the splits that have lists, such as ``omniglot_vinyals``."""
    return {folder.name for folder in FOLDER.iterdir()}


def class_list(data_set: str, split: str) -> list[str]:
    """Class names of one of ``SPLITS``, in the published order."""
    return (FOLDER / data_set / f"{split}.txt").read_text(encoding="utf-8").split()
