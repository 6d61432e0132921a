"""Images decoded once into a flat file that later loads map into memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.dataset import ClassDataset
from tasks.errors import DataError
from tasks.files import atomic_write, cache_folder

_FORMAT = 1


def fingerprint(root: Path, files: Iterable[Path], *settings: object) -> str:
    """A digest that changes with the names, sizes and times of the files and with the settings."""
    digest = hashlib.sha256(repr((_FORMAT, *settings)).encode())
    for file in files:
        state = file.stat()
        entry = (file.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns)
        digest.update(repr(entry).encode())
    return digest.hexdigest()


def read_decoded(root: Path, name: str, key: str) -> ClassDataset | None:
    """The data set written under this name with this key; None if absent, stale or damaged.

    Its images are mapped from the file, so that memory holds only those in use.
    """
    for folder in _folders(root):
        try:
            description = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            if description["key"] != key:
                continue
            classes: dict[str, int] = description["classes"]
            shape = (sum(classes.values()), *description["shape"])
            file = folder / f"{name}.bin"
            if file.stat().st_size != np.prod(shape):
                continue
            # Copy on write: torch asks for memory it could write to, the file stays as it is.
            pixels = np.memmap(file, np.uint8, mode="c", shape=shape)
            return _dataset(torch.from_numpy(pixels), classes)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
    return None


def write_decoded(
    root: Path,
    name: str,
    key: str,
    shape: Sequence[int],
    classes: Iterable[tuple[str, Iterable[NDArray[np.uint8]]]],
) -> ClassDataset:
    """Writes images ``[C, H, W]`` class by class as they come, and reads the result.

    The files ``<name>.bin`` (the bytes of all images) and ``<name>.json`` (key, shape, number of
    images of each class) go to ``root``, or to the cache folder if ``root`` is read-only. One image
    at a time is in memory.

    Raises:
        DataError: if neither folder can be written to, or an image has another shape.
    """
    root_folder, other = _folders(root)
    folder = root_folder if os.access(root, os.W_OK) else other
    counts: dict[str, int] = {}
    try:
        with atomic_write(folder / f"{name}.bin") as file:
            for class_name, images in classes:
                counts[class_name] = 0
                for image in images:
                    if image.shape != tuple(shape):
                        raise DataError(
                            f"an image of class '{class_name}' has shape {list(image.shape)}; "
                            f"{list(shape)} was expected"
                        )
                    file.write(image.tobytes())
                    counts[class_name] += 1
        description = {"key": key, "shape": list(shape), "classes": counts}
        with atomic_write(folder / f"{name}.json") as file:
            file.write(json.dumps(description, indent=1).encode())
    except OSError as error:
        raise DataError(
            f"decoded images cannot be kept in {folder} ({error}): make room there, or name "
            "another cache folder in the environment variable XDG_CACHE_HOME"
        ) from error
    dataset = read_decoded(root, name, key)
    if dataset is None:
        raise DataError(f"{folder / name}.bin has changed since it was written: try again")
    return dataset


def _folders(root: Path) -> tuple[Path, Path]:
    """Where decoded images of ``root`` may be: there, or in a cache folder of its own."""
    place = root.resolve()
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    return root, cache_folder() / f"{place.name}-{digest}"


def _dataset(images: torch.Tensor, classes: dict[str, int]) -> ClassDataset:
    counts = torch.tensor(list(classes.values()))
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    return ClassDataset(images, labels, tuple(classes))
