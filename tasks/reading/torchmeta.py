"""Images in HDF5 files beside lists of classes in JSON, as torchmeta writes them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.errors import ConfigurationError, pip_install
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list
from fewshot_blo.tasks.reading.imagenet import Encoded, Source
from fewshot_blo.tasks.reading.images import read_image

# tristandeleu/pytorch-meta, torchmeta/datasets: miniimagenet.py and tieredimagenet.py write
# {train,val,test}_data.hdf5 with a group ``datasets`` of one array a class (uint8 pixels, or the
# bytes of image files) and {train,val,test}_labels.json, a list of class names; cifar100/base.py
# writes data.hdf5 with a group a superclass, and {cifar-fs,fc100}/{train,val,test}_labels.json.
_CIFAR = {"cifarfs": "cifar-fs", "fc100": "fc100"}


def hdf5_file(path: Path) -> Any:
    """The file, open for reading.

    Raises:
        ConfigurationError: if h5py is not installed.
        DataError: if the file is missing or no HDF5 file.
    """
    try:
        h5py = importlib.import_module("h5py")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{path} needs h5py: {pip_install('.[formats]')}, or install h5py itself"
        ) from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read as HDF5 ({error}): it is missing, truncated or of another kind"
        ) from error


def array_of(file: Any, name: str, path: Path) -> NDArray[Any]:
    """The array of this name in a file.

    Raises:
        DataError: if there is none.
    """
    try:
        array: NDArray[Any] = file[name][()]
    except (KeyError, OSError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} has no readable array '{name}' ({error}): write it again"
        ) from error
    return array


def split_files(folder: Path, split: str) -> list[Path]:
    """The two files of a split."""
    return [folder / f"{split}_data.hdf5", folder / f"{split}_labels.json"]


def has_splits(folder: Path) -> bool:
    """Whether a file of one of the splits is in the folder."""
    return any(split_files(folder, split)[0].is_file() for split in SPLITS)


def split_source(folder: Path, split: str) -> Source:
    """One split of miniImageNet or tieredImageNet.

    Raises:
        DataError: if a file is missing.
    """
    files = split_files(folder, split)
    for file in files:
        if not file.is_file():
            raise DataError(f"{file} is missing: put it beside the other files")
    return Source(files, bind(_encoded, files[0], files[1]))


def _encoded(path: Path, labels: Path, size: int) -> Encoded:
    file = hdf5_file(path)
    if "datasets" not in file:
        raise DataError(f"{path} has no group 'datasets': it is not what torchmeta writes")
    group = file["datasets"]
    counts = {}
    for name in class_names(labels):
        if name not in group:
            raise DataError(f"{labels} names class '{name}', which {path} lacks: write both again")
        counts[name] = _checked(group[name], name, path).shape[0]

    def decode(place: tuple[str, int]) -> NDArray[np.uint8]:
        name, index = place
        try:
            values: NDArray[np.uint8] = group[name][index]
        except OSError as error:
            raise DataError(
                f"{path}: class '{name}' cannot be read ({error}): write the file again"
            ) from error
        source = values.tobytes() if values.ndim == 1 else values
        text = f"{index} of class '{name}' in {path}"
        return read_image(source, size=size, color=True, crop=False, name=text)

    places = {name: [(name, n) for n in range(counts[name])] for name in sorted(counts)}
    return Encoded(places, decode)


def _checked(array: Any, name: str, path: Path) -> Any:
    """The array of a class, if it is one of images or of the bytes of image files."""
    numbers = getattr(array, "dtype", None)
    files = getattr(numbers, "metadata", None) or {}  # h5py's mark of a variable length.
    images = numbers == np.uint8 and array.ndim in (3, 4)
    if not images and not (files.get("vlen") == np.uint8 and array.ndim == 1):
        raise DataError(f"{path}: class '{name}' is no array of uint8 images or image files")
    return array


def class_names(path: Path) -> list[str]:
    """The unique class names that a JSON file lists; a path of several names is joined by ``/``.

    Raises:
        DataError: if the file is not such a list.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        names = [entry if isinstance(entry, str) else "/".join(entry) for entry in listed]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a JSON list of class names ({error}): write it again"
        ) from error
    if len(set(names)) != len(names):
        raise DataError(f"{path} names a class twice: write it again")
    return names


def cifar_files(folder: Path, variant: str) -> list[Path]:
    """``data.hdf5`` and the lists of classes that are there, empty without the former.

    torchmeta's FC100 cannot write its lists (``fine_names`` is not defined in fc100.py), so they
    may be missing.

    Raises:
        DataError: if a list is not the published one.
    """
    data = folder / "data.hdf5"
    lists = [folder / _CIFAR[variant] / f"{split}_labels.json" for split in SPLITS]
    there = [file for file in lists if file.is_file()]
    if not data.is_file() or not (there or (folder / "fine_names.json").is_file()):
        return []
    for split, file in zip(SPLITS, lists, strict=True):
        if file in there:
            names = {name.rpartition("/")[2] for name in class_names(file)}
            if names != set(class_list(variant, split)):
                raise DataError(f"{file} does not list the published classes: remove it")
    return [data, *there]


def cifar_classes(path: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yields the classes of CIFAR-100 with their images ``[M, 3, 32, 32]``."""
    with hdf5_file(path) as file:
        for superclass in file:
            for name in file[superclass]:
                images = array_of(file, f"{superclass}/{name}", path)
                if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
                    raise DataError(
                        f"{path}: class '{name}' is {images.dtype} of shape {list(images.shape)}: "
                        "it must be uint8 [images, 32, 32, 3]"
                    )
                yield str(name), images.transpose(0, 3, 1, 2)
