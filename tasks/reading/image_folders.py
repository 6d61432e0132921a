"""Classes and their images in a folder with one subfolder per class."""

from __future__ import annotations

from pathlib import Path

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.walk import Walk, composed, counted, is_hidden, walk

BESIDE = "images beside the class folders"


def by_class(found: Walk, root: Path) -> dict[str, list[Path]]:
    """The images below each subfolder of ``root``, at any depth; names are sorted.

    Names are normalized to Unicode NFC. A subfolder without images has an empty list.

    Args:
        found: the images of ``root`` or of a folder that holds it.
        root: the folder.

    Raises:
        DataError: if two names are the same.
    """
    files: dict[str, list[Path]] = {}
    depth = len(root.parts)
    for path in found.below(root):
        if len(path.parts) > depth + 1:
            files.setdefault(path.parts[depth], []).append(path)
    folders = {path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)}
    classes: dict[str, list[Path]] = {}
    for folder in sorted(folders | files.keys()):
        name = composed(folder)
        if name in classes:
            raise DataError(
                f"{root} has two folders named '{name}' in Unicode NFC: rename one of them"
            )
        classes[name] = files.get(folder, [])
    return dict(sorted(classes.items()))


def class_images(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The images of ``root/<class>/`` at any depth, and sentences on what was passed over.

    Raises:
        DataError: if ``root`` is not a folder, or two names are the same.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give a folder with one subfolder per class")
    found = walk(root)
    classes = by_class(found, root)
    found.passed_over[BESIDE] += len(found.files) - sum(map(len, classes.values()))
    return with_images(classes), [*found.notes(), *empty_classes(classes)]


def with_images(classes: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The classes that have an image."""
    return {name: files for name, files in classes.items() if files}


def empty_classes(classes: dict[str, list[Path]]) -> list[str]:
    """A sentence on the classes without images, where there are any."""
    empty = [f"'{name}'" for name, files in classes.items() if not files]
    if not empty:
        return []
    listed = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
    return [f"{counted(len(empty), 'folder')} without images passed over: {listed}"]
