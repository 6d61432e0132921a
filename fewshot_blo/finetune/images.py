"""``LabelledImages``, the images to fine-tune on, and reading them from a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune.near_duplicates import near_duplicates
from fewshot_blo.records.shapes import kind
from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.reading.images import check_size, read_image
from fewshot_blo.tasks.reading.layouts import LabelledFiles, Pairs, labelled_files
from fewshot_blo.tasks.reading.several import several
from fewshot_blo.tasks.reading.walk import counted

_NAMED = 5


@dataclass(frozen=True)
class LabelledImages:
    """M images of N classes.

    Attributes:
        images: uint8 images ``[M, C, S, S]``, or precomputed floating-point features
            ``[M, D, 1, 1]``.
        labels: labels in ``0..N-1``, ``[M]``.
        class_names: N names.
        files: file names of the M images; may be empty if no report is written.
        left_out: one sentence per image that was left out, with the reason.
        groups: group of each image, ``[M]``; images of one group, such as frames of a video, are
            nearly the same and are to be held out together. Each image is its own group by default.
        held_out: images of the same classes that were set apart and are not trained on; None if
            there are none.
        notes: sentences on what was passed over, near-duplicates and doubtful images.

    Raises:
        ConfigurationError: if there is not one group per image.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    groups: Tensor = field(default_factory=lambda: torch.arange(0))
    held_out: LabelledImages | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.groups):
            object.__setattr__(self, "groups", torch.arange(len(self.labels)))
        if self.groups.shape != self.labels.shape:
            raise ConfigurationError(
                f"groups have shape {list(self.groups.shape)} and labels {list(self.labels.shape)}:"
                " there must be one group per image"
            )

    def __repr__(self) -> str:
        return (
            f"LabelledImages({len(self.labels)} images of {len(self.class_names)} classes, "
            f"{list(self.images.shape[1:])} {kind(self.images)}, {len(self.left_out)} left out)"
        )

    @property
    def counts(self) -> Tensor:
        """Number of images of each class, ``[N]``."""
        return torch.bincount(self.labels, minlength=len(self.class_names))


def read_labelled(
    source: Path | str,
    size: int,
    *,
    pattern: str = "",
    skip_unreadable: bool = False,
    least: int = 2,
) -> LabelledImages:
    """Reads the images of a folder in any of the layouts of ``labelled_files``.

    Images are resized and cropped to a square. Duplicates within a class are read once.

    Args:
        source: folder of images, or CSV file of image files and classes.
        size: height and width of the images in pixels.
        pattern: pattern of file names that says the class, such as ``{label}_*``; empty for none.
        skip_unreadable: leave out images that cannot be decoded.
        least: smallest number of classes.

    Raises:
        DataError: if there are fewer classes than ``least``, an image cannot be decoded (unless
            they are skipped), or one image is in two classes.
    """
    check_size(size)
    files = labelled_files(Path(source), pattern=pattern)
    return decode_labelled(files, size, skip_unreadable=skip_unreadable, least=least)


def decode_labelled(
    files: LabelledFiles, size: int, *, skip_unreadable: bool = False, least: int = 2
) -> LabelledImages:
    """Decodes files whose classes are known; arguments and errors as in ``read_labelled``."""
    every = (*files.train, *files.held_out)
    pixels, unreadable = _decoded([path for path, _ in every], size, skip_unreadable)
    taken: dict[str, tuple[Path, str]] = {}
    train, left_out = _distinct(files.train, pixels, taken)
    apart, again = _distinct(files.held_out, pixels, taken)
    names = tuple(dict.fromkeys(name for _, name in train))
    if len(names) < least:
        raise DataError(
            f"there are {counted(len(names), 'class', 'classes')} with images that can be decoded: "
            f"there must be at least {least}; add images of another class"
        )
    images, labels = _stacked(train, pixels, names)
    groups, across = near_duplicates(images, labels)
    paths = [path for path, _ in train]
    notes = [
        *files.notes,
        *_lost(files.train, names),
        *_grouped(groups, paths),
        *_across(across, train),
        *_blank([path for path, _ in (*train, *apart)], pixels),
    ]
    left_out = [*unreadable, *left_out, *again]
    held_out = None
    apart = [pair for pair in apart if pair[1] in names]
    if apart:
        own = tuple(str(path) for path, _ in apart)
        held_out = LabelledImages(*_stacked(apart, pixels, names), names, own)
    return LabelledImages(
        images,
        labels,
        names,
        tuple(map(str, paths)),
        tuple(left_out),
        groups,
        held_out,
        tuple(notes),
    )


def as_pixels(images: Any, size: int) -> Tensor:
    """Images given in any usual way, as uint8 ``[M, 3, size, size]``.

    Args:
        images: several images: uint8 tensors ``[M, 3, size, size]``, which are taken as they are,
            or a sequence or array of paths, contents of files, Pillow images, arrays ``[H, W]`` or
            ``[H, W, C]`` or tensors ``[C, H, W]``, as ``open_image`` decodes them.
        size: height and width in pixels.

    Raises:
        DataError: if it is one image or no images, or one cannot be decoded.
    """
    ready = isinstance(images, Tensor) and images.dtype == torch.uint8
    if ready and images.shape == (len(images), 3, size, size):
        return images
    rows = [read_image(image, size=size, color=True) for image in several(images)]
    return torch.from_numpy(np.stack(rows))


def _decoded(
    paths: Sequence[Path], size: int, skip: bool
) -> tuple[dict[Path, NDArray[np.uint8]], list[str]]:
    """Pixels by path, and a sentence for each image that could not be decoded."""
    pixels, failures = {}, []
    for path in paths:
        try:
            pixels[path] = read_image(path, size=size, color=True)
        except DataError as error:
            failures.append(str(error))
    if failures and not skip:
        listed = "\n  ".join(failures[:20])
        raise DataError(
            f"{len(failures)} of {len(paths)} images cannot be read:\n  {listed}\n"
            "repair them, or leave them out with skip_unreadable"
        )
    return pixels, [f"{failure} (left out)" for failure in failures]


def _distinct(
    pairs: Pairs, pixels: dict[Path, NDArray[np.uint8]], taken: dict[str, tuple[Path, str]]
) -> tuple[list[tuple[Path, str]], list[str]]:
    """Files of images that were not taken before, and a sentence for each of the others.

    Args:
        pairs: files with the names of their classes.
        pixels: pixels of those that can be decoded.
        taken: by digest, the images that were taken; those of this call are added.

    Raises:
        DataError: if one image is in two classes.
    """
    kept, same = [], []
    for path, name in pairs:
        if path not in pixels:
            continue
        digest = hashlib.sha256(pixels[path].tobytes()).hexdigest()
        first, owner = taken.setdefault(digest, (path, name))
        if owner != name:
            raise DataError(
                f"{first} and {path} are the same image in two classes, '{owner}' and '{name}': "
                "keep it in the right one and put the other copy elsewhere"
            )
        if first is path:
            kept.append((path, name))
        else:
            same.append(f"{path} is the same image as {first} (left out)")
    return kept, same


def _stacked(
    pairs: Sequence[tuple[Path, str]],
    pixels: dict[Path, NDArray[np.uint8]],
    names: Sequence[str],
) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.stack([pixels[path] for path, _ in pairs]))
    return images, torch.tensor([names.index(name) for _, name in pairs])


def _lost(pairs: Pairs, names: Sequence[str]) -> list[str]:
    lost = [f"'{name}'" for name in dict.fromkeys(name for _, name in pairs) if name not in names]
    listed = f"{counted(len(lost), 'class', 'classes')} {', '.join(lost)}"
    return [f"{listed} passed over: no image can be decoded"] if lost else []


def _grouped(groups: Tensor, paths: Sequence[Path]) -> list[str]:
    sizes = torch.bincount(groups, minlength=len(groups))
    shared = (sizes > 1).nonzero().flatten().tolist()
    if not shared:
        return []
    first, second = (groups == shared[0]).nonzero().flatten().tolist()[:2]
    return [
        f"{int(sizes[shared].sum())} images are nearly the same as others of their class, in "
        f"{counted(len(shared), 'group')}, and are held out together (such as {paths[first]} and "
        f"{paths[second]})"
    ]


def _across(pairs: Sequence[tuple[int, int]], train: Sequence[tuple[Path, str]]) -> list[str]:
    notes = [
        f"{train[first][0]} and {train[second][0]} are nearly the same image in two classes, "
        f"'{train[first][1]}' and '{train[second][1]}': check their classes"
        for first, second in pairs[:_NAMED]
    ]
    more = len(pairs) - _NAMED
    if more > 0:
        notes.append(f"{counted(more, 'more pair')} of images in two classes are nearly the same")
    return notes


def _blank(paths: Sequence[Path], pixels: dict[Path, NDArray[np.uint8]]) -> list[str]:
    blank = [str(path) for path in paths if (pixels[path] == pixels[path][:, :1, :1]).all()]
    if not blank:
        return []
    listed = ", ".join(blank[:_NAMED]) + (", ..." if len(blank) > _NAMED else "")
    verb = "image has" if len(blank) == 1 else "images have"
    return [f"{len(blank)} {verb} one colour everywhere: check {listed}"]
