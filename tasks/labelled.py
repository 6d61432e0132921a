"""Data sets of torchvision and Hugging Face in memory, and the division of classes into splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural, Positive
from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.columns import NO_LABEL, class_of, columns_of
from fewshot_blo.tasks.reading.division import FRACTIONS, by_fractions, check_parts
from fewshot_blo.tasks.reading.images import check_size, open_image, square
from fewshot_blo.tasks.reading.walk import counted

_GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")


def from_torchvision(
    dataset: Any,
    *,
    size: int | None = None,
    color: bool | None = None,
    names: Sequence[str] | None = None,
) -> ClassDataset:
    """The images of a data set of torchvision, or of any that has items ``(image, label)``.

    Images are what the items are, with the data set's ``transform``: Pillow images, arrays or
    tensors, floating-point ones in [0, 1]. All are read into memory.

    Args:
        dataset: has items; a ``Subset`` or an ``IterableDataset`` too.
        size: height and width in pixels, of the largest centred square; by default the images' own,
            which must then be the same.
        color: RGB, else grey; by default as the first image.
        names: class names by label; by default ``dataset.classes`` (of a subset, those of its data
            set), or the labels themselves. Names without images are left out.

    Raises:
        DataError: if there are no items, an item's label is neither an integer nor text, has no
            name or is negative, or an image cannot be read or has another size.
    """
    known = _names_of(dataset) if names is None else tuple(names)
    items = ((item, f"item {number}") for number, item in enumerate(_items(dataset)))
    pairs = (_pair(item, where) for item, where in items)
    return _gathered(pairs, known, size, color)


def from_hugging_face(
    dataset: Any,
    *,
    image: str = "",
    label: str = "",
    size: int | None = None,
    color: bool | None = None,
) -> ClassDataset:
    """The images of a ``datasets.Dataset``; of a ``DatasetDict``, those of all its splits.

    Where splits hold different classes, read each by itself, ``from_hugging_face(d["train"])`` and
    so on, and give the three to ``Splits``. All images are read into memory; for large data sets,
    save parquet files and use the data set ``Parquet``.

    Args:
        dataset: has features, or columns that ``image`` and ``label`` name.
        image, label: names of the columns; by default those of the features ``Image`` and
            ``ClassLabel``.
        size, color: as in ``from_torchvision``.

    Raises:
        DataError: if columns are not found, a row has no class, or as in ``from_torchvision``.
    """
    parts = list(dataset.values()) if isinstance(dataset, Mapping) else [dataset]
    if not parts:
        raise DataError("the DatasetDict has no splits: load one that has")
    features = parts[0].features
    if features is None:
        raise DataError(
            "the data set does not say its features: load it without streaming, or call "
            "_resolve_features"
        )
    types = {field.name: str(field.type) for field in features.arrow_schema}
    columns = columns_of("the data set", features.to_dict(), types, image, label)
    rows = (row for part in parts for row in _rows(part, [columns.image, columns.label]))
    pairs = ((row[columns.image], row[columns.label], f"row {n}") for n, row in enumerate(rows))
    return _gathered(pairs, columns.names, size, color)


@checked
def divide(
    dataset: ClassDataset,
    *,
    fractions: tuple[Positive, Positive, Positive] = FRACTIONS,
    seed: Natural = 0,
    lists: Sequence[Sequence[str]] | None = None,
) -> Splits:
    """Divides the classes of a data set into training, validation and test.

    Args:
        dataset: all classes.
        fractions: fractions of the classes for training, validation and test; each split gets at
            least one class.
        seed: seed of the random division by ``fractions``.
        lists: names of the classes of training, validation and test, used instead of ``fractions``;
            the notes say how many classes they leave out.

    Raises:
        DataError: if there are fewer than 3 classes, or lists are not three, or name a class that
            there is not, or are empty.
    """
    names = dataset.class_names
    places = {name: place for place, name in enumerate(names)}
    if lists is None:
        parts: Sequence[Sequence[str]] = by_fractions(names, fractions, seed)
    else:
        if len(lists) != 3:
            raise DataError(f"there are {len(lists)} lists: give three, of train, validation, test")
        check_parts(lists, "lists")
        foreign = [name for part in lists for name in part if name not in places]
        if foreign:
            raise DataError(f"class '{foreign[0]}' of lists is not in the data set: correct it")
        parts = lists
    chosen = [[places[name] for name in part] for part in parts]
    left = len(names) - sum(map(len, chosen))
    notes = (f"{counted(left, 'class', 'classes')} passed over, which lists leave out",)
    return Splits(*(dataset.select(part) for part in chosen), notes=notes if left > 0 else ())


Pair = tuple[Any, Any, str]
"""An image, its label, and where they are, for errors."""


def _items(dataset: Any) -> Iterator[Any]:
    # By number, for PyTorch's data sets need not stop at their end.
    return (
        (dataset[n] for n in range(len(dataset))) if hasattr(dataset, "__len__") else iter(dataset)
    )


def _pair(item: Any, where: str) -> Pair:
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(
            f"{where} is a {type(item).__name__}: items must be (image, label); from_arrays takes "
            "images and labels apart"
        )
    return item[0], item[1], where


def _rows(part: Any, columns: list[str]) -> Iterable[Any]:
    # Without a format, images are those of Pillow and labels are numbers.
    rows: Iterable[Any] = part.with_format(None).select_columns(columns)
    return rows


def _names_of(dataset: Any) -> tuple[str, ...]:
    """``classes`` of the data set or of the one that it is a subset of; empty if there are none."""
    classes = getattr(dataset, "classes", None)
    if classes is None and hasattr(dataset, "dataset"):
        return _names_of(dataset.dataset)
    # ImageNet's are tuples of synonyms.
    texts = (name if isinstance(name, str) else ", ".join(name) for name in classes or ())
    return tuple(texts)


def _gathered(
    pairs: Iterable[Pair], names: Sequence[str], size: int | None, color: bool | None
) -> ClassDataset:
    """The data set of these images, its classes in the order of names, numbers or the alphabet."""
    if size is not None:
        check_size(size)
    images: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for source, label, where in pairs:
        color = _has_color(source) if color is None else color
        pixels = _pixels(source, size, color, where)
        if images and pixels.shape != images[0].shape:
            raise DataError(
                f"{where} has {pixels.shape[2]} x {pixels.shape[1]} pixels, and the first has "
                f"{images[0].shape[2]} x {images[0].shape[1]}: set size to read all at one size"
            )
        images.append(pixels)
        labels.append(_class(label, names, where))
    if not images:
        raise DataError("the data set has no images: load one that has")
    found = set(labels)
    numbered = all(name.lstrip("-").isdigit() for name in found)
    ordered = [n for n in names if n in found] or sorted(found, key=int if numbered else None)
    places = {name: place for place, name in enumerate(ordered)}
    positions = torch.tensor([places[name] for name in labels])
    return ClassDataset.from_labels(torch.from_numpy(np.stack(images)), positions, ordered)


def _class(label: Any, names: Sequence[str], where: str) -> str:
    value = label.item() if isinstance(label, (Tensor, np.generic)) and label.ndim == 0 else label
    name = class_of(value, names, where)
    if name is None or (isinstance(value, int) and value < 0):
        raise DataError(f"{where} has no class (its label is {value!r}): leave out {NO_LABEL}")
    return name


def _has_color(source: Any) -> bool:
    if isinstance(source, Image.Image):
        return source.mode not in _GREY
    if isinstance(source, (np.ndarray, Tensor)):
        return source.ndim == 3 and 1 not in (source.shape[0], source.shape[-1])
    return True


def _pixels(source: Any, size: int | None, color: bool, where: str) -> NDArray[np.uint8]:
    """``[C, H, W]``."""
    content: Any = source
    if isinstance(source, dict):  # Of an image that datasets was told not to decode.
        content = source.get("bytes") or source.get("path") or b""
    image = open_image(content, color=color, name=f"of {where}")
    if size is not None:
        return square(image, size=size)
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))
