"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each (Lake et al., 2015)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list
from fewshot_blo.tasks.reading.downloads import downloaded_once
from fewshot_blo.tasks.reading.images import check_memory, check_size
from fewshot_blo.tasks.reading.omniglot_files import (
    ADDRESS,
    IMAGES_PER_CHARACTER,
    Group,
    expected,
    source_of,
)
from fewshot_blo.tasks.reading.omniglot_files import GROUPS as GROUPS
from fewshot_blo.tasks.reading.splits_once import splits_once
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

_CACHE_FORMAT = 2


def load(
    root: Path | str,
    *,
    split: str = "vinyals",
    rotations: bool = True,
    mirrors: bool = False,
    size: int = 28,
    download: bool = False,
    refresh: bool = False,
) -> Splits:
    """Characters as classes, ink 255 on 0, images ``[M, 1, size, size]``.

    Images are resized as grey images with the Lanczos filter, as in learn2learn's Omniglot
    benchmark. (MAML's script uses the same filter but on 1-bit images, for which Pillow takes the
    nearest pixel.) The first call decodes 32,460 images into the cache folder, with their rotations
    and mirror images (102 MB by default); later calls map the cache into memory.

    Args:
        root: folder of ``images_background`` and ``images_evaluation``, as zip archives or
            unpacked, directly in it or one folder below (torchvision's ``omniglot-py``); or of
            ``data.hdf5``, as torchmeta writes it into ``omniglot``, which needs h5py.
        split: ``vinyals``: 1028, 172 and 423 characters of any alphabet (Vinyals et al., 2016,
            in the lists of Snell et al., 2017); ``background``: whole alphabets, the 25 larger
            background alphabets, the 5 smallest and the 20 evaluation alphabets, that is 883, 81
            and 659 characters (Meta-Dataset, Triantafillou et al., 2020).
        rotations: count each character as four classes, rotated by 0, 90, 180 and 270 degrees;
            all four are in the character's split.
        mirrors: add the mirror image of each training class as a further class; validation and
            test never have them, so their tasks follow the published protocol.
        size: height and width in pixels.
        download: download missing archives through torchvision.
        refresh: decode the images again.

    Raises:
        DataError: if ``split`` is unknown, or the data is missing, incomplete or corrupt.
    """
    if split not in ("vinyals", "background"):
        raise DataError(f"split is '{split}': it must be 'vinyals' or 'background'")
    check_size(size)
    root = Path(root)
    if download:
        downloaded_once(root, "Omniglot", lambda again: _download(root, again))
    groups = [Group.find(root, name) for name in GROUPS]
    members = repr([group.members for group in groups])
    variant = (f"-{split}", "-rotated" * rotations, "-mirrored" * mirrors, f"-{size}px")

    def make() -> Splits:
        check_memory(32_460, 1, size)
        upright = _decode(groups, size)
        positions = {name: position for position, name in enumerate(upright.class_names)}
        parts = []
        for part in SPLITS:
            listed = class_list(f"omniglot_{split}", part)
            dataset = upright.select([positions[name] for name in listed])
            dataset = dataset.with_rotations() if rotations else dataset
            parts.append(dataset.with_mirror_images() if mirrors and part == "train" else dataset)
        return Splits(*parts)

    turns = 4 if rotations else 1
    listed = [turns * len(class_list(f"omniglot_{split}", part)) for part in SPLITS]
    listed[0] *= 2 if mirrors else 1
    return splits_once(
        "omniglot" + "".join(variant),
        f"{_CACHE_FORMAT}, {hashlib.sha256(members.encode()).hexdigest()}",
        (1, size, size),
        make,
        lambda _: listed,
        refresh=refresh,
    )


def _decode(groups: Sequence[Group], size: int) -> ClassDataset:
    """All upright characters."""
    names = [name for group in GROUPS for name in expected(group)]
    pixels = np.empty((len(names) * IMAGES_PER_CHARACTER, size, size), np.uint8)
    images = (image for group in groups for image in group.images())
    for row, image in zip(pixels, images, strict=True):
        resized = image.resize(row.shape, Image.Resampling.LANCZOS)
        np.subtract(255, np.asarray(resized), out=row)
    counts = dict.fromkeys(names, IMAGES_PER_CHARACTER)
    return ClassDataset.from_counts(torch.from_numpy(pixels)[:, None], counts)


def _download(root: Path, again: bool) -> None:
    """Downloads the archives missing from ``root`` to where torchvision keeps them."""
    for name in GROUPS:
        if source_of(root, name) is not None and not again:
            continue
        try:
            torchvision_module().datasets.Omniglot(
                root, background=name == "images_background", download=True
            )
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"the download of Omniglot's {name}.zip failed ({error}): try again, or put the "
                f"files of {ADDRESS} into {root}"
            ) from error
