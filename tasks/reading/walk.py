"""Finding the image files of a folder, and counting what is passed over."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.formats import is_image, remedy, suffix_of

# Made by systems and programs beside the user's own files.
_JUNK = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
    | {".ds_store", ".ipynb_checkpoints", ".git", ".gitattributes", ".gitignore", ".dvc", ".cache"}
)

# Folders that Hugging Face's cache has for each data set or model.
_HUB_NAMES = ("datasets--", "models--", "spaces--")

HIDDEN = "hidden"
BROKEN = "broken links (fetch the files)"
CIRCULAR = "links to folders that are read already"
SPECIAL = "special files"
CLOSED = "folders without permission to read (allow it)"

_SINGULAR = {f"{noun}s": noun for noun in ("file", "folder", "image", "link", "row")}


@dataclass
class Walk:
    """The image files under a folder.

    Attributes:
        root: the folder.
        files: paths below ``root``, sorted folder by folder; links are not resolved.
        passed_over: number of entries that were passed over, by kind.
        outside: number of links followed out of ``root``.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    outside: int = 0

    def below(self, folder: Path) -> list[Path]:
        """The files in ``folder`` and its subfolders."""
        if folder == self.root:
            return self.files
        return [file for file in self.files if file.is_relative_to(folder)]

    def notes(self) -> list[str]:
        """Sentences on what was passed over and on links that leave the folder."""
        said = sentence(self.passed_over)
        notes = [said] if said else []
        if self.outside:
            notes.append(f"{counted(self.outside, 'link')} out of {self.root} followed")
        return notes


def walk(root: Path) -> Walk:
    """Finds the images in a folder and its subfolders, or the one image that ``root`` is.

    Links are followed, also out of ``root``, except to a folder that holds the link or was read
    already. Hidden entries and those that systems leave (``Thumbs.db``, ``__MACOSX``) are passed
    over. Of a cache of Hugging Face the snapshots are read, whose links have the files' names.

    Raises:
        DataError: if ``root`` is neither a folder nor a file.
    """
    found = Walk(root)
    if root.is_file():
        found.files.append(root)
    elif root.is_dir():
        _enter(root, found)
    else:
        raise DataError(f"{root} is not a folder: name a folder of images, or an image file")
    return found


def composed(name: str) -> str:
    """The name normalized to Unicode NFC."""
    return unicodedata.normalize("NFC", name)


def sentence(passed_over: Mapping[str, int]) -> str:
    """What was passed over by kind, most frequent first; empty if nothing was."""
    kinds = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{number} {_named(kind, number)}" for kind, number in kinds if number)
    total = sum(passed_over.values())
    return f"{counted(total, 'entry', 'entries')} passed over: {listed}" if listed else ""


def _named(kind: str, number: int) -> str:
    """The kind, in the singular for one: it has one noun in the plural, or none."""
    if number > 1:
        return kind
    words = kind.split(" ")
    place = next((n for n, word in enumerate(words) if word in _SINGULAR), None)
    if place is not None:
        words[place] = _SINGULAR[words[place]]
    return " ".join(words)


def counted(number: int, one: str, many: str = "") -> str:
    """The number with its noun in singular or plural."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def _enter(root: Path, found: Walk) -> None:
    for path, is_plain in _listed(root, found):
        if not is_plain and path.is_dir():
            # Each folder once below each entry of the root: links cannot multiply them, and two
            # classes may still have links to one folder.
            _descend(path, found, {os.path.realpath(root)})
        else:
            _take(path, found, is_plain)


def _descend(folder: Path, found: Walk, seen: set[str]) -> None:
    # A stack and no recursion: folders may be nested deeper than Python's calls.
    stack = [iter([(folder, False)])]
    while stack:
        path, is_plain = next(stack[-1], (None, False))
        if path is None:
            stack.pop()
        elif is_plain or not path.is_dir():
            _take(path, found, is_plain)
        elif _is_new(path, found, seen):
            stack.append(iter(_listed(path, found)))


def _is_new(folder: Path, found: Walk, seen: set[str]) -> bool:
    """Whether a folder is to be read; counts links in a circle."""
    place = os.path.realpath(folder)
    top = os.path.realpath(found.root)
    circle = folder.is_symlink() and any(
        _holds(place, inner) for inner in (os.path.realpath(folder.parent), top)
    )
    if circle or place in seen:
        found.passed_over[CIRCULAR] += 1
        return False
    seen.add(place)
    found.outside += folder.is_symlink() and not _holds(top, place)
    return True


def _holds(folder: str, path: str) -> bool:
    return Path(path).is_relative_to(folder)


def _listed(folder: Path, found: Walk) -> Iterator[tuple[Path, bool]]:
    """The entries of a folder that are not hidden; counts the others that are no junk.

    With each, whether it is a regular file and no link, which the listing itself says: a look at
    each of a million files would take longer than all else here.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except PermissionError:
        found.passed_over[CLOSED] += 1
        return
    stored = _hub_stores({entry.name for entry in entries}, folder.name)
    for entry in entries:
        if entry.name in stored:
            continue
        if not is_hidden(entry.name):
            yield folder / entry.name, entry.is_file(follow_symlinks=False)
        elif not is_junk(entry.name):
            found.passed_over[HIDDEN] += 1


def _hub_stores(names: set[str], folder: str) -> set[str]:
    """In Hugging Face's cache, what is not read: snapshots have links to the files in blobs."""
    hub = "refs" in names or folder.startswith(_HUB_NAMES)
    return {"blobs", "refs"} if hub and {"blobs", "snapshots"} <= names else set()


def _take(path: Path, found: Walk, is_plain: bool) -> None:
    """Adds a file, or counts why it is passed over."""
    if not is_plain and not path.is_file():
        broken = path.is_symlink() and not os.access(path, os.F_OK)
        found.passed_over[BROKEN if broken else SPECIAL] += 1
    elif is_image(path):
        found.files.append(path)
        if not is_plain and path.is_symlink():
            target = os.path.realpath(path)
            found.outside += not _holds(os.path.realpath(found.root), target)
    else:
        suffix = suffix_of(path.name)
        install = remedy(suffix)
        kind = (suffix or "without a suffix") + (f" ({install})" if install else "")
        found.passed_over[kind] += 1


def is_hidden(name: str) -> bool:
    """Whether an entry is hidden or junk by its name."""
    return name.startswith(".") or is_junk(name)


def is_junk(name: str) -> bool:
    """Whether an entry is one that systems and programs leave, of which no word is said."""
    return name.lower() in _JUNK or name.startswith("._")
