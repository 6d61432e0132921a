"""Shared by the subsets of ImageNet: checks against published lists, class folders, decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.records.progress import Progress
from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list
from fewshot_blo.tasks.reading.decoded import Classes, check_disk, decoded_once, fingerprint
from fewshot_blo.tasks.reading.image_folders import class_images
from fewshot_blo.tasks.reading.images import check_size, read_image


@dataclass(frozen=True)
class Encoded:
    """The images of one split before they are decoded.

    Attributes:
        classes: images of each class, each an argument for ``decode``.
        decode: decodes one image to ``[3, size, size]``.
    """

    classes: Mapping[str, Sequence[Any]]
    decode: Callable[[Any], NDArray[np.uint8]]


@dataclass(frozen=True)
class Source:
    """The files of one split.

    Attributes:
        files: all files that the images are read from; they must exist.
        read: from the image size to the encoded images.
    """

    files: Sequence[Path]
    read: Callable[[int], Encoded]


@dataclass(frozen=True)
class Published:
    """A data set as its authors describe it.

    Attributes:
        name: name of the data set, for messages.
        folder: folder of its class lists in ``tasks/splits``.
        images: number of images of each split.
        named_by_words: whether a source may name all classes by words instead of WordNet ids.
    """

    name: str
    folder: str
    images: Mapping[str, int]
    named_by_words: bool = False

    def classes(self, split: str) -> list[str]:
        """WordNet ids of the classes of one split."""
        return class_list(self.folder, split)

    def check(self, split: str, counts: Mapping[str, int], *, partial: bool) -> None:
        """Compares the classes and number of images of a split with the published ones.

        Classes that are named by words can only be counted.

        Raises:
            DataError: if a class is not in the split; unless ``partial``, also if a class is
                missing or the number of images differs from the published one.
        """
        if not counts:
            raise DataError(f"{self.name} {split} has no classes: add their folders or files")
        expected = self.classes(split)
        if not self.named_by_words or any(_is_synset(name) for name in counts):
            self._check_names(split, set(counts), expected, partial)
        elif len(counts) > len(expected) or (len(counts) < len(expected) and not partial):
            raise DataError(
                f"{self.name} {split} has {len(counts)} classes instead of {len(expected)}: "
                "download it again, or set partial to accept missing classes"
            )
        images = sum(counts.values())
        if images != self.images[split] and not partial:
            raise DataError(
                f"{self.name} {split} has {images} images instead of {self.images[split]}: "
                "download it again, or set partial to accept this number"
            )

    def _check_names(
        self, split: str, names: set[str], expected: Sequence[str], partial: bool
    ) -> None:
        foreign = sorted(names.difference(expected))
        if foreign:
            owner = [other for other in SPLITS if foreign[0] in self.classes(other)]
            belongs = f"it belongs to {owner[0]}" if owner else "it is in none of its splits"
            raise DataError(
                f"class {foreign[0]} is not among the {len(expected)} {split} classes of "
                f"{self.name} ({belongs}; {len(foreign)} such classes): put it elsewhere"
            )
        missing = sorted(set(expected) - names)
        if missing and not partial:
            raise DataError(
                f"{self.name} {split} lacks {len(missing)} of {len(expected)} classes: "
                f"{_listed(missing)}; add them, or set partial to accept missing classes"
            )


def load_splits(
    root: Path,
    published: Published,
    source: Callable[[str], Source],
    *,
    size: int,
    partial: bool,
    progress: bool,
    refresh: bool,
) -> Splits:
    """The three splits of a source, decoded on the first call and mapped from disk later.

    Raises:
        DataError: if the source is not what was published, or an image cannot be decoded.
    """
    check_size(size)
    return Splits(
        *(
            _load_split(root, published, split, source(split), size, partial, progress, refresh)
            for split in SPLITS
        )
    )


def _load_split(
    root: Path,
    published: Published,
    split: str,
    source: Source,
    size: int,
    partial: bool,
    progress: bool,
    refresh: bool,
) -> ClassDataset:
    name = f"{published.folder}-{split}-{size}px"

    def decode() -> Classes:
        encoded = source.read(size)
        counts = {label: len(images) for label, images in encoded.classes.items()}
        published.check(split, counts, partial=partial)
        check_disk(sum(counts.values()), 3, size)
        return _decoded(encoded, name, progress)

    key = fingerprint(root, source.files)
    dataset = decoded_once(root, name, key, (3, size, size), decode, refresh=refresh)
    # Checked again: the cache may have been written with ``partial``.
    counts = dict(zip(dataset.class_names, dataset.counts.tolist(), strict=True))
    published.check(split, counts, partial=partial)
    return dataset


def _decoded(
    encoded: Encoded, name: str, progress: bool
) -> Iterator[tuple[str, Iterator[NDArray[np.uint8]]]]:
    total = sum(len(images) for images in encoded.classes.values())
    with Progress(f"decoding {name}", total, "image", shown=progress) as bar:
        for label, images in encoded.classes.items():
            yield label, map(encoded.decode, images)
            bar.advance(len(images))


def file_source(classes: Mapping[str, Sequence[Path]]) -> Source:
    """A source of image files, stretched to a square as in the published 84 x 84 data."""

    def read(size: int) -> Encoded:
        return Encoded(classes, partial(read_image, size=size, color=True, crop=False))

    return Source([file for files in classes.values() for file in files], read)


def folder_source(folder: Path) -> Source:
    """A source of the images in ``folder/<class>/``, as module ``image_folders`` finds them.

    Raises:
        DataError: if the folder is missing.
    """
    return file_source(class_images(folder)[0])


def _is_synset(name: str) -> bool:
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
