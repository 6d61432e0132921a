"""Class folders with lists of the splits' classes beside them, as R2D2 keeps its data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.records.files import with_subfolders
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list
from fewshot_blo.tasks.reading.image_folders import class_images
from fewshot_blo.tasks.reading.images import open_image

# bertinetto/r2d2, fewshots/data/load.py and setup.py: <data set>/data/<class>/*.png or *.jpg, and
# <data set>/splits/<name>/{train,val,test}.txt; learn2learn keeps CIFAR-FS two folders down, in
# cifarfs/cifar100.


def data_folder(root: Path, data_set: str, lists: str) -> Path | None:
    """The folder of the class folders in ``root`` or a folder in it; None if there is none.

    Args:
        root: where to look.
        data_set: R2D2's name of the data set, such as ``cifar100``.
        lists: the published class lists that those beside it must agree with, where there are any.

    Raises:
        DataError: if the lists say another division.
    """
    for outer in with_subfolders(root):
        for folder in (outer, outer / data_set):
            if (folder / "data").is_dir() and (folder / "splits").is_dir():
                _check_lists(folder / "splits", lists)
                return folder / "data"
    return None


def _check_lists(folder: Path, published: str) -> None:
    for file in sorted(folder.glob("*/*.txt")):
        if file.stem in SPLITS:
            names = {line.strip() for line in file.read_text(encoding="utf-8").splitlines()} - {""}
            if names != set(class_list(published, file.stem)):
                raise DataError(
                    f"{file} does not list the published classes of {published}: remove it to use "
                    "these, or read the folder with the data set Folder and a CSV file of classes"
                )


def classes_of(data: Path, names: Sequence[str]) -> dict[str, list[Path]]:
    """The image files of these classes, in this order; absent ones are left out."""
    found, _ = class_images(data)
    return {name: found[name] for name in names if name in found}


def pixels(classes: dict[str, list[Path]], side: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yields the classes with their images ``[M, 3, side, side]``.

    Raises:
        DataError: if an image has another size or cannot be decoded.
    """
    for name, files in classes.items():
        images = np.empty((len(files), side, side, 3), np.uint8)
        for row, file in zip(images, files, strict=True):
            image = open_image(file, color=True)
            if image.size != (side, side):
                raise DataError(
                    f"image {file} has {image.width} x {image.height} pixels instead of {side} x "
                    f"{side}: use the original images"
                )
            row[:] = np.asarray(image)
        yield name, images.transpose(0, 3, 1, 2)
