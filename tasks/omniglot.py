"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each (Lake et al., 2015)."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewshot_blo.records.files import ARCHIVE_ERRORS, with_subfolders
from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list
from fewshot_blo.tasks.reading.downloads import downloaded_once
from fewshot_blo.tasks.reading.images import check_memory, check_size, open_image
from fewshot_blo.tasks.reading.splits_once import splits_once
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

GROUPS = ("images_background", "images_evaluation")
IMAGES_PER_CHARACTER = 20
SIDE = 105
_CACHE_FORMAT = 2
_ADDRESS = "https://github.com/brendenlake/omniglot/tree/master/python"


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
            unpacked, directly in it or one folder below (torchvision's ``omniglot-py``).
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
    groups = [_Group.find(root, name) for name in GROUPS]
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


@dataclass(frozen=True)
class _Group:
    """One half of the data set: a zip archive or a folder that has all of its images.

    Attributes:
        source: the archive or folder.
        members: ``(character, path in the source, stamp)`` of every image, sorted. The stamp
            changes with the image: CRC in an archive, size and modification time in a folder.
    """

    source: Path
    members: tuple[tuple[str, str, str], ...]

    @classmethod
    def find(cls, root: Path, name: str) -> _Group:
        """Finds group ``name`` in ``root`` or one folder below, and checks that it is complete."""
        source = _source(root, name)
        if source is None:
            raise DataError(
                f"Omniglot is not complete: neither {name}.zip nor a folder {name} is in {root} "
                f"or a folder in it; put the files of {_ADDRESS} there, or set download"
            )
        listing = _list_archive(source) if source.is_file() else _list_folder(source)
        members = []
        for path, stamp in listing:
            *_, alphabet, character, file = ("", "", *path.split("/"))
            if file.endswith(".png") and not file.startswith(".") and "__MACOSX" not in path:
                members.append((f"{alphabet}/{character}", path, stamp))
        _check(source, name, [character for character, _, _ in members])
        return cls(source, tuple(sorted(members)))

    def images(self) -> Iterator[Image.Image]:
        """Yields every image, decoded to grey, in the order of ``members``."""
        if self.source.is_dir():
            for _, path, _ in self.members:
                file = self.source / path
                yield _checked_size(open_image(file, color=False), str(file))
            return
        with zipfile.ZipFile(self.source) as archive:
            for _, path, _ in self.members:
                name = f"{path} in {self.source}"
                try:
                    # The limit keeps a malicious archive from filling the memory.
                    content = archive.open(path).read(2**20)
                except ARCHIVE_ERRORS as error:
                    raise DataError(
                        f"image {name} cannot be unpacked ({error}): download the archive again"
                    ) from error
                image = open_image(io.BytesIO(content), color=False, name=name)
                yield _checked_size(image, name)


def _source(root: Path, name: str) -> Path | None:
    """The archive or folder of a group; the archive if both exist."""
    for folder in with_subfolders(root):
        if folder != root and folder.name in GROUPS:
            continue
        if (folder / f"{name}.zip").is_file():
            return folder / f"{name}.zip"
        if (folder / name).is_dir():
            return folder / name
    return None


def _list_archive(source: Path) -> list[tuple[str, str]]:
    try:
        with zipfile.ZipFile(source) as archive:
            return [(member.filename, f"{member.CRC:08x}") for member in archive.infolist()]
    except ARCHIVE_ERRORS as error:
        raise DataError(
            f"{source} is not a complete zip archive ({error}): delete it and download it again"
        ) from error


def _list_folder(source: Path) -> list[tuple[str, str]]:
    listing = []
    for file in source.rglob("*.png"):
        if file.is_file():
            state = file.stat()
            stamp = f"{state.st_size}-{state.st_mtime_ns}"
            listing.append((file.relative_to(source).as_posix(), stamp))
    return listing


def _check(source: Path, name: str, characters: Sequence[str]) -> None:
    """Compares the characters of all images found in a group with the published ones."""
    expected = _expected(name)
    counts = Counter(characters)
    missing = [character for character in expected if character not in counts]
    if missing:
        raise DataError(
            f"{source} lacks {len(missing)} of {len(expected)} characters, the first is "
            f"{missing[0]}: download it again"
        )
    surplus = sorted(counts.keys() - set(expected))
    if surplus:
        raise DataError(
            f"{source} holds {len(surplus)} characters that are not in Omniglot's {name}, the "
            f"first is {surplus[0]}: put them elsewhere"
        )
    for character in expected:
        if counts[character] != IMAGES_PER_CHARACTER:
            raise DataError(
                f"{character} in {source} has {counts[character]} images instead of "
                f"{IMAGES_PER_CHARACTER}: download the data again"
            )


def _expected(name: str) -> list[str]:
    """The characters of a group, sorted."""
    parts = ("train", "val") if name == "images_background" else ("test",)
    return sorted(name for part in parts for name in class_list("omniglot_background", part))


def _checked_size(image: Image.Image, name: str) -> Image.Image:
    if image.size != (SIDE, SIDE):
        raise DataError(
            f"image {name} has {image.width}x{image.height} pixels instead of {SIDE}x{SIDE}: "
            "use the original images"
        )
    return image


def _decode(groups: Sequence[_Group], size: int) -> ClassDataset:
    """All upright characters."""
    names = [name for group in GROUPS for name in _expected(group)]
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
        if _source(root, name) is not None and not again:
            continue
        try:
            torchvision_module().datasets.Omniglot(
                root, background=name == "images_background", download=True
            )
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"the download of Omniglot's {name}.zip failed ({error}): try again, or put the "
                f"files of {_ADDRESS} into {root}"
            ) from error
