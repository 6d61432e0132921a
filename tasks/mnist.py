"""MNIST: train and test images of ten digits, for bilevel problems other than few-shot learning."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.decoded import CacheError, check_disk, decoded_once, fingerprint
from fewshot_blo.tasks.reading.downloads import downloaded_once
from fewshot_blo.tasks.reading.splits_once import class_by_class, warn_uncached
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

SIDE = 28
_NAMES = {"train": "train", "test": "t10k"}
# Searched in this order; folders are named since other data sets use the same file names.
_FOLDERS = ("", "mnist", "MNIST/raw", "raw")
_UNSIGNED_BYTES = 8


class TrainTest(NamedTuple):
    """Images of the same classes to train on and to test on."""

    train: ClassDataset
    test: ClassDataset


def load(root: Path | str, *, download: bool = False) -> TrainTest:
    """60,000 training and 10,000 test images ``[M, 1, 28, 28]``.

    Args:
        root: folder of the four original files, gzipped or not, or torchvision's root, which
            contains ``MNIST/raw``.
        download: download the files through torchvision if they are missing.

    The first call unpacks the images into the cache folder (55 MB), sorted by digit; later calls,
    and other processes, map the cache into memory.

    Raises:
        DataError: if files are missing or damaged.
    """
    root = Path(root)
    if download:
        downloaded_once(root, "MNIST", lambda again: _download(root, again))
    return TrainTest(_dataset(root, "train"), _dataset(root, "test"))


def _dataset(root: Path, part: str) -> ClassDataset:
    files = _file(root, part, "images", 3), _file(root, part, "labels", 1)
    made = cache(lambda: _sorted(root, part, *files))

    def decode() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        check_disk(len(made()), 1, SIDE)
        yield from class_by_class(made())

    key = fingerprint(root, files)
    try:
        return decoded_once(root, f"mnist-{part}", key, (1, SIDE, SIDE), decode)
    except CacheError as error:
        warn_uncached(error)
        return made()


def _sorted(root: Path, part: str, *files: Path) -> ClassDataset:
    """The images sorted by digit."""
    images, labels = _read(files[0], 3), _read(files[1], 1)
    if len(images) != len(labels) or images.shape[1:] != (SIDE, SIDE) or labels.max() > 9:
        raise DataError(
            f"the {part} files of MNIST in {root} have images of shape {images.shape} and labels "
            f"of shape {labels.shape} up to {labels.max()}: they must have as many 28x28 images "
            "as labels, and labels from 0 to 9; download them again"
        )
    names = tuple(str(digit) for digit in range(10))
    return ClassDataset.from_labels(
        torch.from_numpy(images)[:, None], torch.from_numpy(labels), names
    )


def _file(root: Path, part: str, kind: str, axes: int) -> Path:
    name = f"{_NAMES[part]}-{kind}-idx{axes}-ubyte"
    path = _found(root, name)
    if path is None:
        raise DataError(
            f"MNIST's {name}(.gz) is not in {root}: put the four original files there, or set "
            "download"
        )
    return path


def _found(root: Path, name: str) -> Path | None:
    paths = (root / folder / (name + end) for folder in _FOLDERS for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _read(path: Path, axes: int) -> NDArray[np.uint8]:
    """Reads an idx file: two zero bytes, dtype, number of dimensions, their sizes, the data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}): download it again") from error
    start = 4 + 4 * axes
    shape = np.frombuffer(content[4:start], ">i4").tolist()
    size = len(content) - start
    if content[:4] != bytes([0, 0, _UNSIGNED_BYTES, axes]) or int(np.prod(shape)) != size:
        raise DataError(
            f"{path} is not an idx file of uint8 with {axes} dimensions: download it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _download(root: Path, again: bool) -> None:
    if not again and _found(root, "train-images-idx3-ubyte") is not None:
        return
    try:
        torchvision_module().datasets.MNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"the download of MNIST failed ({error}): try again, or put its four files into {root}"
        ) from error
