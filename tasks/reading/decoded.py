"""Image cache: images decoded once into a flat file that later loads map into memory."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot_blo.records.files import atomic_write, cache_folder, sweep
from fewshot_blo.records.json_files import read_json, write_json
from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.errors import DataError

_FORMAT = 3
_BLOCK = 1 << 24
"""Bytes under one digest."""


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """A digest of the files' names relative to ``root``, sizes, modification and change times.

    The time of change (``st_ctime``) is the system's own: a file replaced by one of the same size
    and modification time has another.
    """
    digest = hashlib.sha256(repr(_FORMAT).encode())
    for file in files:
        state = file.stat()
        times = state.st_mtime_ns, state.st_ctime_ns
        entry = (file.relative_to(root).as_posix(), state.st_size, *times)
        digest.update(repr(entry).encode())
    return digest.hexdigest()


def read_decoded(root: Path, name: str, key: str) -> ClassDataset | None:
    """The data set cached under this name with this key; None if absent, stale or damaged.

    All images are read once to compare them with their digests, at about 0.25 s a GB besides the
    disk's time. They are memory-mapped, so only the pages in use are resident.
    """
    folder = _folder(root)
    path = folder / f"{name}.json"
    try:
        description = read_json(path)
        if description["key"] != key:
            return None
        classes: dict[str, int] = description["classes"]
        shape = (sum(classes.values()), *description["shape"])
        with path.with_suffix(".bin").open("rb") as file:
            file.seek(math.prod(shape))
            if file.read(len(key) + 1) != key.encode():
                return None
            # Copy-on-write: torch requires writable memory, and the file must not change.
            pixels = np.memmap(file, np.uint8, mode="c", shape=shape)
        if _digests(pixels) != description["crc32"]:
            return None
        return ClassDataset.from_counts(torch.from_numpy(pixels), classes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        return None


class _Digests:
    """CRC-32 of each block of bytes that come in pieces."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._last = self._size = 0

    def add(self, piece: bytes | memoryview) -> None:
        """Takes in the next bytes."""
        rest = memoryview(piece)
        while rest:
            part, rest = rest[: _BLOCK - self._size], rest[_BLOCK - self._size :]
            self._last, self._size = zlib.crc32(part, self._last), self._size + len(part)
            if self._size == _BLOCK:
                self._done.append(self._last)
                self._last = self._size = 0

    def all(self) -> list[int]:
        """One of each block so far, of which the last may be shorter."""
        return [*self._done, self._last] if self._size else self._done


def _digests(pixels: NDArray[np.uint8]) -> list[int]:
    digests = _Digests()
    digests.add(pixels.reshape(-1).data)
    return digests.all()


def write_decoded(
    root: Path,
    name: str,
    key: str,
    shape: Sequence[int],
    classes: Iterable[tuple[str, Iterable[NDArray[np.uint8]]]],
) -> ClassDataset:
    """Caches images ``[C, H, W]`` class by class as they are decoded, and returns the data set.

    Writes ``<name>.bin`` (the bytes of all images, then the key) and ``<name>.json`` (key, shape,
    number of images per class, CRC-32 of each 16 MiB) into a subfolder of the cache folder,
    replacing files with another key. Only one image at a time is in memory.

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
    digests = _Digests()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with atomic_write(folder / f"{name}.bin") as file:
            for class_name, images in classes:
                counts[class_name] = 0
                for image in images:
                    if image.shape != tuple(shape):
                        raise DataError(
                            f"an image of class '{class_name}' has shape {list(image.shape)}: "
                            f"it must be {list(shape)}"
                        )
                    content = image.tobytes()
                    file.write(content)
                    digests.add(content)
                    counts[class_name] += 1
            # The key is in both files, so files of different writes are never combined.
            file.write(key.encode())
        description = {"key": key, "shape": list(shape), "classes": counts}
        write_json(folder / f"{name}.json", {**description, "crc32": digests.all()})
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
