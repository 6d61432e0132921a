"""tieredImageNet: 608 classes whose splits share no WordNet category (Ren et al., 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial as bind
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.tasks.dataset import Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading import torchmeta
from fewshot_blo.tasks.reading.class_lists import SPLITS
from fewshot_blo.tasks.reading.imagenet import (
    Encoded,
    Published,
    Source,
    folder_source,
    load_splits,
)
from fewshot_blo.tasks.reading.images import read_image
from fewshot_blo.tasks.reading.pickles import as_text, load_dictionary, load_pickle
from fewshot_blo.tasks.reading.unpacked import unpacked

PUBLISHED = Published(
    "tieredImageNet",
    "tieredimagenet",
    {"train": 448_695, "val": 124_261, "test": 206_209},
    named_by_words=True,
)


def load(
    root: Path | str,
    *,
    size: int = 84,
    partial: bool = False,
    progress: bool = True,
    refresh: bool = False,
) -> Splits:
    """Images ``[M, 3, size, size]`` of 351, 97 and 160 classes.

    ``root``, or a folder ``tiered-imagenet`` in it, has one of these layouts:

    - ``train``, ``val`` and ``test`` with one folder of images per class, named by WordNet id,
      where links that leave the folder of the split are skipped;
    - ``train_images_png.pkl``, ``train_labels.pkl`` and so on, as published by Ren et al.: a list
      of PNG files as uint8 arrays, and a dictionary with ``label_specific`` (the class of each
      image) and ``label_specific_str`` (the class names, in words). They are read without
      executing code in the pickles;
    - ``train_data.hdf5``, ``train_labels.json`` and so on, in ``tieredimagenet`` or not
      (torchmeta), which need h5py.

    The first call decodes all images into the cache folder (16.5 GB at 84 pixels) and holds one
    pickle in memory at a time. Later calls map the decoded images into memory: of the 9.5 GB of
    the train split, only the pages in use are resident.

    Args:
        root: folder of the data, or a zip archive of it, which is unpacked into the cache folder
            once.
        size: height and width in pixels.
        partial: accept missing classes and images.
        progress: show the progress of decoding as a bar, or as lines where there is no terminal.
        refresh: decode the images again.

    Raises:
        DataError: if files are missing or corrupt, or classes or images differ from the published.
    """
    root, notes = unpacked(Path(root), refresh=refresh)
    if (root / "tiered-imagenet").is_dir():
        root = root / "tiered-imagenet"
    splits = load_splits(
        root,
        PUBLISHED,
        _layout(root),
        size=size,
        partial=partial,
        progress=progress,
        refresh=refresh,
    )
    return replace(splits, notes=notes)


def _layout(root: Path) -> Callable[[str], Source]:
    if any((root / split).is_dir() for split in SPLITS):
        return lambda split: folder_source(root / split)
    if any(root.glob("*_images_png.pkl")):
        return bind(_pickled, root)
    for folder in (root, root / "tieredimagenet"):
        if torchmeta.has_splits(folder):
            return bind(torchmeta.split_source, folder)
    raise DataError(
        f"{root} has none of the layouts of tieredImageNet: folders train, val, test; or "
        "train_images_png.pkl, train_labels.pkl and the same for val and test; or train_data.hdf5, "
        "train_labels.json and the same for val and test"
    )


def _pickled(root: Path, split: str) -> Source:
    images, labels = root / f"{split}_images_png.pkl", root / f"{split}_labels.pkl"
    for file in (images, labels):
        if not file.is_file():
            raise DataError(f"{file} is missing: put it beside the other files")
    return Source([images, labels], bind(_read_pickles, images, labels))


def _read_pickles(images_file: Path, labels_file: Path, size: int) -> Encoded:
    content = load_dictionary(labels_file, "label_specific", "label_specific_str")
    labels = np.asarray(content["label_specific"])
    names = [as_text(name) for name in content["label_specific_str"]]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{labels_file}: label_specific is not a list of integers")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise DataError(
            f"{labels_file}: label_specific runs from {labels.min()} to {labels.max()}, "
            f"but label_specific_str names {len(names)} classes: download it again"
        )
    if len(set(names)) != len(names):
        raise DataError(f"{labels_file}: label_specific_str names a class twice: download it again")
    images = load_pickle(images_file)
    if not isinstance(images, (list, tuple, np.ndarray)) or len(images) != len(labels):
        count = len(images) if hasattr(images, "__len__") else "no"
        raise DataError(
            f"{images_file} has {count} images, but {labels_file} has {len(labels)} labels: "
            "download both again"
        )

    def decode(position: int) -> NDArray[np.uint8]:
        name = f"{position} of {images_file}"
        try:
            png = BytesIO(memoryview(images[position]))
        except TypeError as error:
            raise DataError(
                f"image {name} is not an array of bytes: download the file again"
            ) from error
        return read_image(png, size=size, color=True, crop=False, name=name)

    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.bincount(labels, minlength=len(names)).cumsum()[:-1])
    classes = {name: part.tolist() for name, part in zip(names, parts, strict=True)}
    return Encoded({name: classes[name] for name in sorted(names) if classes[name]}, decode)
