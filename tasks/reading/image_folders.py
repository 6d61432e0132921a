"""Finding classes and images in a folder with one subfolder per class."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from fewshot_blo.tasks.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})


def class_folders(root: Path) -> dict[str, Path]:
    """The subfolders of ``root`` by name, sorted.

    Names are normalized to Unicode NFC. Hidden folders and links that leave ``root`` are skipped.

    Raises:
        DataError: if ``root`` is not a folder, or two names are the same.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give a folder with one subfolder per class")
    folders: dict[str, Path] = {}
    for folder in _inside(root, root):
        if folder.is_dir():
            name = composed(folder.name)
            if name in folders:
                raise DataError(
                    f"{root} has two folders named '{name}' in Unicode NFC: rename one of them"
                )
            folders[name] = folder
    return {name: folders[name] for name in sorted(folders)}


def class_images(folder: Path, root: Path) -> list[Path]:
    """The image files of a class folder of ``root``, sorted.

    Hidden files, files without an image suffix and links that leave ``root`` are skipped.

    Raises:
        DataError: if there are no images.
    """
    files = sorted(
        path for path in _inside(folder, root) if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not files:
        raise DataError(
            f"class folder {folder} has no images ({', '.join(sorted(SUFFIXES))}): "
            "remove it or add images to it"
        )
    return files


def composed(name: str) -> str:
    """The name normalized to Unicode NFC."""
    return unicodedata.normalize("NFC", name)


def _inside(folder: Path, root: Path) -> Iterator[Path]:
    """Yields the entries of a folder, without hidden ones and links that leave ``root``."""
    inside = root.resolve()
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        # Not Path.resolve, which raises for a link to itself.
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
            continue
        yield path
