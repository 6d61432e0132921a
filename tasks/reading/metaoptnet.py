"""Pickles of images and labels, as MetaOptNet and FewShotWithoutForgetting read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list
from fewshot_blo.tasks.reading.imagenet import Encoded, Source
from fewshot_blo.tasks.reading.images import read_image
from fewshot_blo.tasks.reading.pickles import as_text, load_dictionary

# kjunelee/MetaOptNet, data/CIFAR_FS.py, data/FC100.py and data/mini_imagenet.py; the last is
# that of gidariss/FewShotWithoutForgetting. train_phase_val and train_phase_test hold further
# images of the training classes, beyond the published 600.
CIFAR = {"cifarfs": "CIFAR_FS_{}.pickle", "fc100": "FC100_{}.pickle"}
_MINIIMAGENET = "miniImageNet_category_split_{}.pickle"
_PHASES = {"train": "train_phase_train", "val": "val", "test": "test"}


def cifar_files(folder: Path, variant: str) -> list[Path]:
    """The pickles of the splits in a folder, empty if there are none.

    Raises:
        DataError: if some are missing.
    """
    return _all_or_none([folder / CIFAR[variant].format(split) for split in SPLITS])


def miniimagenet_files(folder: Path) -> list[Path]:
    """As ``cifar_files``, of miniImageNet."""
    return _all_or_none([folder / _MINIIMAGENET.format(_PHASES[split]) for split in SPLITS])


def _all_or_none(files: list[Path]) -> list[Path]:
    there = [file for file in files if file.is_file()]
    if there and len(there) < len(files):
        missing = next(file for file in files if file not in there)
        raise DataError(f"{missing} is missing: put it beside {there[0].name}")
    return there


def miniimagenet_notes(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Sentences on classes that have no names, and on files that are not read."""
    notes = []
    if all(name.isdigit() for name in names):
        notes.append(f"the pickles in {folder} have no catname2label: classes have their numbers")
    further = [folder / _MINIIMAGENET.format(f"train_phase_{phase}") for phase in ("val", "test")]
    if there := [file.name for file in further if file.is_file()]:
        listed = " and ".join(there)
        notes.append(f"{listed} not read: further images of the training classes")
    return tuple(notes)


def miniimagenet_source(files: list[Path], split: str) -> Source:
    """One split of miniImageNet, with classes named by ``catname2label`` or by their numbers."""
    file = files[SPLITS.index(split)]
    return Source([file], bind(_encoded, file))


def _encoded(file: Path, size: int) -> Encoded:
    images, classes = _images(file)

    def decode(position: int) -> NDArray[np.uint8]:
        name = f"{position} of {file}"
        return read_image(images[position], size=size, color=True, crop=False, name=name)

    return Encoded({name: classes[name].tolist() for name in sorted(classes)}, decode)


def cifar_classes(files: list[Path], variant: str) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yields the classes of each split with their images ``[M, 3, 32, 32]``.

    Labels are numbers. Where those of each split are the places of its published classes in the
    alphabet, as in CIFAR-100, the classes have their names; else their numbers.

    Raises:
        DataError: if a pickle is not such data, or a split has another number of classes.
    """
    alphabet = sorted(name for split in SPLITS for name in class_list(variant, split))
    found = [_images(file) for file in files]
    published = [set(class_list(variant, split)) for split in SPLITS]
    named = [
        {alphabet[int(n)] for n in classes if n.isdigit() and int(n) < len(alphabet)} == expected
        for (_, classes), expected in zip(found, published, strict=True)
    ]
    for file, (images, classes), expected in zip(files, found, published, strict=True):
        if len(classes) != len(expected):
            raise DataError(
                f"{file} has {len(classes)} classes instead of {len(expected)}: download it again"
            )
        if images.shape[1:] != (32, 32, 3):
            raise DataError(
                f"{file}: data has shape {list(images.shape)}: it must be [images, 32, 32, 3]"
            )
        for number in sorted(classes, key=lambda n: int(n) if n.isdigit() else 0):
            name = alphabet[int(number)] if all(named) else number
            yield name, images[classes[number]].transpose(0, 3, 1, 2)


def _images(file: Path) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int64]]]:
    """Images ``[M, H, W, 3]``, and the indices of those of each class."""
    content = load_dictionary(file, "data", "labels")
    images, labels = content["data"], np.asarray(content["labels"])
    if isinstance(images, list):
        images = _stacked(images)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[3:] != (3,):
        raise DataError(f"{file}: data is not a uint8 array [images, height, width, 3]")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"{file}: labels are {labels.dtype} of shape {list(labels.shape)} for {len(images)} "
            "images: they must be one integer per image"
        )
    names = _names(content.get("catname2label"))
    numbers = np.unique(labels).tolist()
    return images, {names.get(n, str(n)): np.flatnonzero(labels == n) for n in numbers}


def _names(numbers: object) -> dict[int, str]:
    """Class names by number, from a dictionary of numbers by class name."""
    items = numbers.items() if isinstance(numbers, dict) else ()
    return {int(number): as_text(name) for name, number in items}


def _stacked(images: list[Any]) -> Any:
    shapes = {getattr(image, "shape", None) for image in images}
    return np.stack(images) if len(shapes) == 1 and None not in shapes else None
