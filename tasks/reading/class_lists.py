"""The published lists of the classes of each split, which the package carries."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "splits"
SPLITS = ("train", "val", "test")


def published() -> set[str]:
    """Names of the data sets that have lists."""
    return {folder.name for folder in FOLDER.iterdir()}


def class_list(data_set: str, split: str) -> list[str]:
    """Names of the classes of one of ``SPLITS``, in the published order."""
    return (FOLDER / data_set / f"{split}.txt").read_text(encoding="utf-8").split()
