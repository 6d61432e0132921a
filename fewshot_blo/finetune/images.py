"""``LabelledImages``, the images to fine-tune on, and reading them from a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot_blo.records.shapes import kind
from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.reading.image_folders import class_folders, class_images
from fewshot_blo.tasks.reading.images import check_size, read_image


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
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    left_out: tuple[str, ...] = ()

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
    root: Path | str, size: int, *, skip_unreadable: bool = False, least: int = 2
) -> LabelledImages:
    """Reads the images in ``root/<class>/``, resized and cropped to a square.

    Duplicates within a class are read once.

    Args:
        root: folder with one subfolder per class.
        size: height and width of the images in pixels.
        skip_unreadable: leave out images that cannot be decoded.
        least: smallest number of classes.

    Raises:
        DataError: if there are fewer classes than ``least``, a class has no image, an image cannot
            be decoded (unless they are skipped), or one image is in two classes.
    """
    root = Path(root)
    check_size(size)
    folders = class_folders(root)
    if len(folders) < least:
        raise DataError(
            f"{root} has {len(folders)} class subfolders: it must have at least {least}, one "
            "subfolder of images per class"
        )
    paths = [(path, name) for name in folders for path in class_images(folders[name], root)]
    pixels, left_out = _decoded([path for path, _ in paths], size, skip_unreadable)
    names = tuple(folders)
    taken: dict[str, tuple[Path, str]] = {}
    rows: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    files: list[str] = []
    for path, name in paths:
        if path not in pixels:
            continue
        digest = hashlib.sha256(pixels[path].tobytes()).hexdigest()
        if digest in taken:
            first, owner = taken[digest]
            if owner != name:
                raise DataError(
                    f"{first} and {path} are the same image in two classes, '{owner}' and '{name}':"
                    " remove the wrong one"
                )
            left_out.append(f"{path} is the same image as {first}")
            continue
        taken[digest] = path, name
        rows.append(pixels[path])
        labels.append(names.index(name))
        files.append(str(path))
    counts = np.bincount(labels, minlength=len(names))
    if not counts.all():
        raise DataError(
            f"class '{names[int(counts.argmin())]}' has no image that can be decoded: add one, or "
            "remove its folder"
        )
    images = torch.from_numpy(np.stack(rows))
    return LabelledImages(images, torch.tensor(labels), names, tuple(files), tuple(left_out))


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
            "remove them, or leave them out with skip_unreadable"
        )
    return pixels, [f"{failure} (left out)" for failure in failures]
