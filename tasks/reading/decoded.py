"""Image cache: images decoded once into a flat file that later loads map into memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot_blo.records.files import atomic_write, cache_folder
from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.errors import DataError

_FORMAT = 2


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """A digest of the files' names relative to ``root``, sizes and modification times."""
    digest = hashlib.sha256(repr(_FORMAT).encode())
    for file in files:
        state = file.stat()
        entry = (file.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns)
        digest.update(repr(entry).encode())
    return digest.hexdigest()


def read_decoded(root: Path, name: str, key: str) -> ClassDataset | None:
    """The data set cached under this name with this key; None if absent, stale or damaged.

    Its images are memory-mapped, so only the pages in use are resident.
    """
    folder = _folder(root)
    try:
        description = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if description["key"] != key:
            return None
        classes: dict[str, int] = description["classes"]
        shape = (sum(classes.values()), *description["shape"])
        with (folder / f"{name}.bin").open("rb") as file:
            file.seek(math.prod(shape))
            if file.read(len(key) + 1) != key.encode():
                return None
            # Copy-on-write: torch requires writable memory, and the file must not change.
            pixels = np.memmap(file, np.uint8, mode="c", shape=shape)
        return ClassDataset.from_counts(torch.from_numpy(pixels), classes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        return None


def write_decoded(
    root: Path,
    name: str,
    key: str,
    shape: Sequence[int],
    classes: Iterable[tuple[str, Iterable[NDArray[np.uint8]]]],
) -> ClassDataset:
    """Caches images ``[C, H, W]`` class by class as they are decoded, and returns the data set.

    Writes ``<name>.bin`` (the bytes of all images, then the key) and ``<name>.json`` (key, shape,
    number of images per class) into a subfolder of the cache folder, replacing files with another
    key. Only one image at a time is in memory.

    Args:
        root: folder of the data, which names the subfolder.
        name: name of the cached files.
        key: digest of the source, from ``fingerprint``.
        shape: expected image shape ``(C, H, W)``.
        classes: class names with their images.

    Raises:
        DataError: if the folder cannot be written to, or an image has another shape.
    """
    folder = _folder(root)
    counts: dict[str, int] = {}
    try:
        with atomic_write(folder / f"{name}.bin") as file:
            for class_name, images in classes:
                counts[class_name] = 0
                for image in images:
                    if image.shape != tuple(shape):
                        raise DataError(
                            f"an image of class '{class_name}' has shape {list(image.shape)}: "
                            f"it must be {list(shape)}"
                        )
                    file.write(image.tobytes())
                    counts[class_name] += 1
            # The key is in both files, so files of different writes are never combined.
            file.write(key.encode())
        description = {"key": key, "shape": list(shape), "classes": counts}
        with atomic_write(folder / f"{name}.json") as file:
            file.write(json.dumps(description, indent=1).encode())
    except OSError as error:
        raise DataError(
            f"decoded images cannot be written to {folder} ({error}): free disk space, or set the "
            "environment variable XDG_CACHE_HOME to another cache folder"
        ) from error
    dataset = read_decoded(root, name, key)
    if dataset is None:
        raise DataError(f"{folder / name}.bin has changed since it was written: try again")
    return dataset


def _folder(root: Path) -> Path:
    """Cache subfolder for ``root``; data folders themselves may be shared or read-only."""
    place = root.resolve()
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    return cache_folder() / f"{place.name}-{digest}"
