"""Reading labelled images from a folder, with sentences on what is doubtful."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.near_duplicates import near_duplicates
from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.reading.images import check_size, common_bits, read_image
from fewshot_blo.tasks.reading.layouts import LabelledFiles, Pairs, labelled_files
from fewshot_blo.tasks.reading.walk import counted

_NAMED = 5


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
    bits, dark = common_bits(path for path, _ in every)
    pixels, unreadable = _decoded([path for path, _ in every], size, skip_unreadable, bits)
    taken: dict[str, tuple[Path, str]] = {}
    train, left_out = _distinct(files.train, pixels, taken)
    apart, again = _distinct(files.held_out, pixels, taken)
    left_out += again
    names = tuple(dict.fromkeys(name for _, name in train))
    if len(names) < least:
        number = counted(len(names), "class has", "classes have")
        raise DataError(
            f"{number} images that can be decoded: there must be at least {least}; add images of "
            "another class"
        )
    apart = [pair for pair in apart if pair[1] in names]
    images, labels = _stacked([*train, *apart], pixels, names)
    groups, across = near_duplicates(images, labels)
    new = _new(groups, len(train))
    left_out += [
        f"{apart[row][0]} is nearly the same as {train[groups[len(train) + row]][0]} (left out)"
        for row in (~new).nonzero().flatten().tolist()
    ]
    paths = [path for path, _ in train]
    notes = (
        *files.notes,
        *_dark(dark, bits),
        *_lost(files.train, names),
        *_grouped(groups[: len(train)], paths),
        *_across(across, [*train, *apart]),
        *_blank([path for path, _ in (*train, *apart)], pixels),
    )
    held_out = None
    if new.any():
        rows = new.nonzero().flatten()
        own = tuple(str(apart[row][0]) for row in rows.tolist())
        rows += len(train)
        held_out = LabelledImages(images[rows], labels[rows], names, own, groups=groups[rows])
    return LabelledImages(
        images[: len(train)],
        labels[: len(train)],
        names,
        tuple(map(str, paths)),
        (*unreadable, *left_out),
        groups[: len(train)],
        held_out,
        notes,
        bits,
    )


def _new(groups: Tensor, train: int) -> Tensor:
    """Which of the held-out images, that come after the training images, are like none of them."""
    return groups[train:] >= train


def _decoded(
    paths: Sequence[Path], size: int, skip: bool, bits: int
) -> tuple[dict[Path, NDArray[np.uint8]], list[str]]:
    """Pixels by path, and a sentence for each image that could not be decoded."""
    pixels, failures = {}, []
    for path in paths:
        try:
            pixels[path] = read_image(path, size=size, color=True, bits=bits)
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


def _dark(number: int, bits: int) -> list[str]:
    if not number:
        return []
    images = counted(number, "image of 16 bits has", "images of 16 bits have")
    return [f"{images} low values alone, and count as of {bits} bits, as the brightest one has"]


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
