"""The files of Omniglot's two groups of alphabets: zip archives, folders, or an HDF5 file."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from fewshot_blo.records.files import ARCHIVE_ERRORS, with_subfolders
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_lists import class_list
from fewshot_blo.tasks.reading.images import open_image
from fewshot_blo.tasks.reading.torchmeta import array_of, hdf5_file

GROUPS = ("images_background", "images_evaluation")
IMAGES_PER_CHARACTER = 20
SIDE = 105
ADDRESS = "https://github.com/brendenlake/omniglot/tree/master/python"
# tristandeleu/pytorch-meta, torchmeta/datasets/omniglot.py: an array a character, of inverted
# images, in omniglot/data.hdf5, in the groups images_background and images_evaluation.
_HDF5 = "data.hdf5"


@dataclass(frozen=True)
class Group:
    """One half of the data set: an archive, a folder or an HDF5 file that has all of its images.

    Attributes:
        source: the archive, folder or file.
        members: ``(character, path in the source, stamp)`` of every image, sorted. The stamp
            changes with the image: CRC in an archive, else size and modification time.
    """

    source: Path
    members: tuple[tuple[str, str, str], ...]

    @classmethod
    def find(cls, root: Path, name: str) -> Group:
        """Finds group ``name`` in ``root`` or one folder below, and checks that it is complete."""
        source = source_of(root, name)
        if source is None:
            raise DataError(
                f"Omniglot is not complete: neither {name}.zip nor a folder {name} is in {root} "
                f"or a folder in it; put the files of {ADDRESS} there, or set download"
            )
        listing = _listing(source, name)
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
                yield checked_size(open_image(file, color=False), str(file))
            return
        if self.source.name == _HDF5:
            yield from self._inverted()
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
                yield checked_size(image, name)

    def _inverted(self) -> Iterator[Image.Image]:
        """Yields every image of the HDF5 file, inverted back."""
        arrays = dict.fromkeys(path.rpartition("/")[0] for _, path, _ in self.members)
        with hdf5_file(self.source) as file:
            for name in arrays:
                for number, pixels in enumerate(array_of(file, name, self.source)):
                    text = f"{name}/{number} of {self.source}"
                    image = open_image(pixels, color=False, name=text)
                    yield ImageOps.invert(checked_size(image, text))


def source_of(root: Path, name: str) -> Path | None:
    """The archive or folder of a group; the archive if both exist."""
    for folder in with_subfolders(root):
        if folder != root and folder.name in GROUPS:
            continue
        if (folder / f"{name}.zip").is_file():
            return folder / f"{name}.zip"
        if (folder / name).is_dir():
            return folder / name
        # CIFAR-100's file has the same name, but no such list beside it.
        if (folder / _HDF5).is_file() and (folder / "vinyals_train_labels.json").is_file():
            return folder / _HDF5
    return None


def _listing(source: Path, name: str) -> list[tuple[str, str]]:
    """Path and stamp of everything in the source."""
    if source.is_dir():
        return _list_folder(source)
    return _list_hdf5(source, name) if source.name == _HDF5 else _list_archive(source)


def _list_hdf5(source: Path, name: str) -> list[tuple[str, str]]:
    state = source.stat()
    stamp = f"{state.st_size}-{state.st_mtime_ns}"
    with hdf5_file(source) as file:
        group = file.get(name)
        if group is None:
            raise DataError(f"{source} has no group '{name}': it is not what torchmeta writes")
        try:
            return [
                (f"{name}/{alphabet}/{character}/{number:02d}.png", stamp)
                for alphabet in group
                for character in group[alphabet]
                for number in range(len(group[alphabet][character]))
            ]
        except (TypeError, ValueError, LookupError, AttributeError, OSError) as error:
            raise DataError(
                f"{source} does not hold an array a character in '{name}' ({error}): it is not "
                "what torchmeta writes"
            ) from error


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
    listed = expected(name)
    counts = Counter(characters)
    missing = [character for character in listed if character not in counts]
    if missing:
        raise DataError(
            f"{source} lacks {len(missing)} of {len(listed)} characters, the first is "
            f"{missing[0]}: download it again"
        )
    surplus = sorted(counts.keys() - set(listed))
    if surplus:
        raise DataError(
            f"{source} holds {len(surplus)} characters that are not in Omniglot's {name}, the "
            f"first is {surplus[0]}: put them elsewhere"
        )
    for character in listed:
        if counts[character] != IMAGES_PER_CHARACTER:
            raise DataError(
                f"{character} in {source} has {counts[character]} images instead of "
                f"{IMAGES_PER_CHARACTER}: download the data again"
            )


def expected(name: str) -> list[str]:
    """The characters of a group, sorted."""
    parts = ("train", "val") if name == "images_background" else ("test",)
    return sorted(name for part in parts for name in class_list("omniglot_background", part))


def checked_size(image: Image.Image, name: str) -> Image.Image:
    if image.size != (SIDE, SIDE):
        raise DataError(
            f"image {name} has {image.width}x{image.height} pixels instead of {SIDE}x{SIDE}: "
            "use the original images"
        )
    return image
