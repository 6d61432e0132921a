"""miniImageNet: 100 classes of 600 images, in the splits of Ravi and Larochelle (2017)."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import partial as bind
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewshot_blo.tasks.dataset import Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading import metaoptnet, r2d2, torchmeta
from fewshot_blo.tasks.reading.class_lists import SPLITS
from fewshot_blo.tasks.reading.imagenet import (
    Encoded,
    Published,
    Source,
    file_source,
    folder_source,
    load_splits,
)
from fewshot_blo.tasks.reading.pickles import as_text, load_dictionary
from fewshot_blo.tasks.reading.unpacked import unpacked

PUBLISHED = Published(
    "miniImageNet", "miniimagenet", {"train": 38_400, "val": 9_600, "test": 12_000}
)


def load(
    root: Path | str,
    *,
    size: int = 84,
    partial: bool = False,
    progress: bool = True,
    refresh: bool = False,
) -> Splits:
    """Images ``[M, 3, size, size]`` of 64, 16 and 20 classes named by WordNet ids.

    ``root`` has one of these layouts:

    - ``train``, ``val`` and ``test`` with one folder of images per class, where links that leave
      the folder of the split are skipped;
    - ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``filename,label`` (Ravi and
      Larochelle, 2017) beside ``images/<filename>`` or ``images/<label>/<filename>``;
    - ``mini-imagenet-cache-train.pkl``, ``-val`` (or ``-validation``) and ``-test``, each a
      dictionary of ``image_data`` (uint8, ``[M, 84, 84, 3]``) and ``class_dict`` (indices of the
      images of each class);
    - ``miniImageNet_category_split_train_phase_train.pickle``, ``-val`` and ``-test`` with ``data``
      and ``labels`` (MetaOptNet), of which the other files of training classes are not read;
    - ``train_data.hdf5``, ``train_labels.json`` and so on, in ``miniimagenet`` or not (torchmeta);
    - ``data/<class>`` beside ``splits``, in ``miniimagenet`` or not (R2D2).

    Pickles are read without executing code.

    Images are stretched to a square with the Lanczos filter. The first call decodes all of them
    into the cache folder (1.3 GB at 84 pixels); later calls map the cache into memory.

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
    published, layout = _layout(root)
    splits = load_splits(
        root,
        published,
        layout,
        size=size,
        partial=partial,
        progress=progress,
        refresh=refresh,
    )
    if published.named_by_words:
        notes += metaoptnet.miniimagenet_notes(root, splits.train.class_names)
    return replace(splits, notes=notes)


def _layout(root: Path) -> tuple[Published, Callable[[str], Source]]:
    if any((root / split).is_dir() for split in SPLITS):
        return PUBLISHED, lambda split: folder_source(root / split)
    if any((root / f"{split}.csv").is_file() for split in SPLITS):
        return PUBLISHED, bind(_listed_files, root)
    if any(root.glob("mini-imagenet-cache-*.pkl")):
        return PUBLISHED, bind(_pickled, root)
    if pickles := metaoptnet.miniimagenet_files(root):
        # Where a pickle has no names of classes, they can only be counted.
        numbered = replace(PUBLISHED, named_by_words=True)
        return numbered, bind(metaoptnet.miniimagenet_source, pickles)
    for folder in (root, root / "miniimagenet"):
        if torchmeta.has_splits(folder):
            return PUBLISHED, bind(torchmeta.split_source, folder)
    if data := r2d2.data_folder(root, "miniimagenet", PUBLISHED.folder):
        return PUBLISHED, lambda split: file_source(
            r2d2.classes_of(data, sorted(PUBLISHED.classes(split)))
        )
    raise DataError(
        f"{root} has none of the layouts of miniImageNet: folders train, val, test; or train.csv, "
        "val.csv, test.csv and images; or mini-imagenet-cache-train.pkl, -val.pkl, -test.pkl; or "
        "one of MetaOptNet, torchmeta or R2D2"
    )


def _listed_files(root: Path, split: str) -> Source:
    listing, folder = root / f"{split}.csv", root / "images"
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: put the images that {listing} lists there")
    classes: dict[str, list[Path]] = {}
    missing = []
    for name, label in _rows(listing):
        file = folder / name
        if not file.is_file():
            file = folder / label / name
        if not file.is_file():
            missing.append(name)
        classes.setdefault(label, []).append(file)
    if missing:
        raise DataError(
            f"{len(missing)} images of {listing} are not in {folder}, the first is {missing[0]}: "
            "add them, or remove their lines"
        )
    return file_source({label: classes[label] for label in sorted(classes)})


def _rows(listing: Path) -> list[tuple[str, str]]:
    """File name and label of every line; refuses names that lead out of the folder."""
    try:
        with listing.open(encoding="utf-8-sig", newline="") as file:
            rows = [(row["filename"], row["label"]) for row in csv.DictReader(file)]
    except KeyError as error:
        raise DataError(
            f"{listing} has no column {error}: its columns must be filename,label"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{listing} cannot be read ({error}): download it again") from error
    for row in rows:
        for name in row:
            if not name or name == ".." or PurePath(name).name != name:
                raise DataError(f"{listing} has the line {row}: names must not contain a path")
    if len(set(rows)) != len(rows):
        twice = next(row for row in sorted(rows) if rows.count(row) > 1)
        raise DataError(f"{listing} lists {twice[0]} twice: remove one of the lines")
    return rows


def _pickled(root: Path, split: str) -> Source:
    names = (split, "validation") if split == "val" else (split,)
    files = [root / f"mini-imagenet-cache-{name}.pkl" for name in names]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise DataError(f"{files[0]} is missing: put it beside the other splits")
    return Source([file], bind(_read_pickle, file))


def _read_pickle(file: Path, size: int) -> Encoded:
    content = load_dictionary(file, "image_data", "class_dict")
    images = content["image_data"]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[3:] != (3,):
        raise DataError(f"{file}: image_data is not a uint8 array [images, height, width, 3]")
    if not isinstance(content["class_dict"], dict):
        raise DataError(f"{file}: class_dict is not a dictionary of image indices by class")
    classes = {}
    for key, positions in content["class_dict"].items():
        name = as_text(key)
        classes[name] = np.asarray(positions)
        if classes[name].dtype.kind not in "iu" or classes[name].ndim != 1:
            raise DataError(f"{file}: class_dict of class {name} is not a list of image indices")
    every = np.concatenate(list(classes.values())) if classes else np.empty(0, np.int64)
    if len(np.unique(every)) != len(every) or ((every < 0) | (every >= len(images))).any():
        raise DataError(
            f"{file}: class_dict has indices that occur twice or are outside the "
            f"{len(images)} images: download it again"
        )
    ordered = {name: classes[name].tolist() for name in sorted(classes)}
    return Encoded(ordered, lambda position: _resized(images[position], size))


def _resized(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resizes ``[H, W, 3]`` to ``[3, size, size]``."""
    if pixels.shape[:2] != (size, size):
        image = Image.fromarray(np.asarray(pixels))
        pixels = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))
    return pixels.transpose(2, 0, 1)
