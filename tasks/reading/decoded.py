"""Image cache: images decoded once into a flat file that all processes map into memory."""

from __future__ import annotations

import hashlib
import math
import mmap
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot_blo.machine.memory import free_bytes
from fewshot_blo.records.files import atomic_write, cache_folder, sweep
from fewshot_blo.records.json_files import read_json, write_json
from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.digests import Digests, is_whole
from fewshot_blo.tasks.reading.turns import turn

_FORMAT = 3

Classes: TypeAlias = "Iterable[tuple[str, Iterable[NDArray[np.uint8]]]]"
"""Class names, each with its images ``[C, H, W]``."""

# Without it, Linux refuses to map more than its memory. Python names it from 3.13 on, and its value
# is that of the processors here.
_USUAL = platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")
_NO_RESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if _USUAL else 0)


class CacheError(DataError):
    """Decoded images cannot be written to the cache folder."""


class MapError(DataError):
    """Decoded images cannot be mapped into memory."""


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """A digest of the names of files below ``root``, sizes, modification and change times.

    The time of change (``st_ctime``) is the system's own: a file replaced by one of the same size
    and modification time has another.
    """
    digest, depth = hashlib.sha256(repr(_FORMAT).encode()), len(root.parts)
    for file in files:
        state = file.stat()
        times = state.st_mtime_ns, state.st_ctime_ns
        entry = ("/".join(file.parts[depth:]), state.st_size, *times)
        digest.update(repr(entry).encode())
    return digest.hexdigest()


def decoded_once(
    root: Path | None,
    name: str,
    key: str,
    shape: Sequence[int],
    decode: Callable[[], Classes],
    *,
    refresh: bool = False,
) -> ClassDataset:
    """The data set cached under this name with this key, decoded first if there is none.

    Of several processes that ask at the same time, one decodes and the others wait for it. All map
    the same file, so that its pages are in memory once.

    Args:
        root: folder of the data, which names the subfolder; None for images that have none.
        name: name of the cached files.
        key: digest of the source, such as from ``fingerprint``.
        shape: expected image shape ``(C, H, W)``.
        decode: called for the classes and their images if they are not in the cache.
        refresh: decode also if they are.

    Raises:
        CacheError: if the cache folder cannot be written to.
        DataError: if an image has another shape; or what ``decode`` raises.
    """
    before = _identity(root, name)
    found = None if refresh else read_decoded(root, name, key)
    if found is not None:
        return found
    with turn(_folder(root) / f".{name}.lock", f"decodes {name}"):
        # Another process may have decoded them since.
        found = (
            None if refresh and _identity(root, name) == before else read_decoded(root, name, key)
        )
        return write_decoded(root, name, key, shape, decode()) if found is None else found


def check_disk(images: int, channels: int, size: int) -> None:
    """Raises ``CacheError`` where decoded images ``[images, channels, size, size]`` do not fit."""
    folder = cache_folder()
    place = next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
    needed, free = images * channels * size**2, shutil.disk_usage(place).free
    if needed > free:
        raise CacheError(
            f"size is {size}: {images} images of {channels}x{size}x{size} need "
            f"{needed / 2**30:.1f} GiB in {folder}, and {free / 2**30:.1f} GiB are free: lower "
            "size, or set the environment variable XDG_CACHE_HOME to another cache folder"
        )


def read_decoded(root: Path | None, name: str, key: str) -> ClassDataset | None:
    """The data set cached under this name with this key; None if absent, stale or damaged.

    The images are compared with their digests when ``digests.is_whole`` says. They are
    memory-mapped: only the pages in use are resident, and they are shared with other processes.

    Raises:
        MapError: if the system does not let this process map the file.
    """
    path = _folder(root) / f"{name}.json"
    try:
        description = read_json(path)
        if description["key"] != key:
            return None
        classes: dict[str, int] = description["classes"]
        shape = (sum(classes.values()), *description["shape"])
        size = math.prod(shape)
        with path.with_suffix(".bin").open("rb") as file:
            file.seek(size)
            if file.read(len(key) + 1) != key.encode():
                return None
            if not is_whole(file, size, description["crc32"], path.with_name(f".{name}.whole")):
                return None
            pixels = np.frombuffer(_mapped(file.fileno(), size, path), np.uint8)
        return ClassDataset.from_counts(torch.from_numpy(pixels).reshape(shape), classes)
    except MapError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        return None


def write_decoded(
    root: Path | None, name: str, key: str, shape: Sequence[int], classes: Classes
) -> ClassDataset:
    """Caches images ``[C, H, W]`` class by class as they are decoded, and returns the data set.

    Writes ``<name>.bin`` (the bytes of all images, then the key) and ``<name>.json`` (key, shape,
    number of images per class, CRC-32 of each 16 MiB) into a subfolder of the cache folder,
    replacing files with another key. Only one image at a time is in memory.

    Args:
        root, name, key, shape: as in ``decoded_once``.
        classes: class names with their images.

    Raises:
        CacheError: if the folder cannot be written to.
        DataError: if an image has another shape.
    """
    folder = _folder(root)
    counts: dict[str, int] = {}
    digests = Digests()
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
        raise CacheError(
            f"decoded images cannot be written to {folder} ({error}): free disk space, or set the "
            "environment variable XDG_CACHE_HOME to another cache folder"
        ) from error
    dataset = read_decoded(root, name, key)
    if dataset is None:
        raise DataError(f"{folder / name}.bin has changed since it was written: try again")
    return dataset


def _mapped(descriptor: int, size: int, path: Path) -> mmap.mmap:
    """The first bytes of a file, copied when they are written to.

    PyTorch requires writable memory, and the file must not change. The system sets no memory aside
    for copies that are never made.
    """
    try:
        flags, access = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        mapped = mmap.mmap(descriptor, size, flags=flags, prot=access)
        if size > free_bytes(torch.device("cpu")):
            # Else the system reads 128 KiB around each image, to drop them soon after.
            mapped.madvise(mmap.MADV_RANDOM)
        return mapped
    except OSError as error:
        raise MapError(
            f"{path.with_suffix('.bin')} cannot be mapped, of {size / 2**30:.1f} GiB ({error}): "
            "raise the process's limits of address space and data (ulimit -v and -d), or allow "
            "the system to overcommit memory (vm.overcommit_memory)"
        ) from error


def _identity(root: Path | None, name: str) -> tuple[int, int] | None:
    """What differs between two descriptions of cached images; None if there is none."""
    try:
        state = (_folder(root) / f"{name}.json").stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def _folder(root: Path | None) -> Path:
    """Cache subfolder for ``root``; data folders themselves may be shared or read-only."""
    if root is None:
        return cache_folder()
    place = root.resolve()
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    return cache_folder() / f"{place.name}-{digest}"
