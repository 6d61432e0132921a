"""What a folder with one subfolder of images a class holds."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from fewshot_blo.tasks.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})


def class_folders(root: Path) -> dict[str, Path]:
    """The subfolders of ``root`` by name, sorted.

    Names are in Unicode's composed form (NFC) whatever the file system keeps. What is hidden is
    passed over, and so are links that leave ``root``.

    Raises:
        DataError: if ``root`` is not a folder, or two names are the same.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: name one that has a subfolder for every class")
    folders: dict[str, Path] = {}
    for folder in _inside(root, root):
        if folder.is_dir():
            name = composed(folder.name)
            if name in folders:
                raise DataError(
                    f"{root} has two folders whose names read '{name}': rename one of them"
                )
            folders[name] = folder
    return {name: folders[name] for name in sorted(folders)}


def class_images(folder: Path, root: Path) -> list[Path]:
    """The image files of a class folder of ``root``, sorted.

    Files that are hidden or have no image's suffix are passed over, and so are links that leave
    ``root``.

    Raises:
        DataError: if there are none.
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
    """A name in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name)


def _inside(folder: Path, root: Path) -> Iterator[Path]:
    """What a folder holds, without what is hidden and without links that leave ``root``."""
    inside = root.resolve()
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        # Not Path.resolve, which raises at a link to itself.
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
            continue
        yield path
