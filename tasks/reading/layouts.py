"""Image files with their classes, in any of the layouts that folders of images have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.image_folders import BESIDE, by_class, empty_classes, with_images
from fewshot_blo.tasks.reading.listed_files import files_of
from fewshot_blo.tasks.reading.manifest import SUFFIXES, read_manifest
from fewshot_blo.tasks.reading.name_pattern import NamePattern
from fewshot_blo.tasks.reading.walk import Walk, counted, is_hidden, sentence, walk

_TRAIN = frozenset({"train", "training", "trainset"})
_HELD_OUT = frozenset(
    {"val", "valid", "validation", "valset", "dev", "test", "testing", "testset", "eval"}
    | {"evaluation", "holdout", "held_out", "held-out"}
)
_REMEDY = (
    "put the images of each class into a subfolder, or name a CSV file with the columns file and "
    "label, or set a pattern for names of files such as {label}_*"
)

Pairs = tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class LabelledFiles:
    """Image files with their classes.

    Attributes:
        train: files to train on, each with the name of its class; classes in order.
        held_out: files of the same classes that were set apart, as in folders val and test.
        notes: sentences on what was passed over and how the folder was read.
    """

    train: Pairs
    held_out: Pairs = ()
    notes: tuple[str, ...] = ()


def labelled_files(source: Path, *, pattern: str = "") -> LabelledFiles:
    """Finds images and their classes.

    ``source`` is a folder with a subfolder of images per class, at any depth; or one with such
    folders in train and in val or test; or one with a CSV file of files and classes; or that file.
    A folder around one of these is entered.

    Args:
        source: folder or CSV file.
        pattern: pattern of the names of files that says the class (``NamePattern``); empty for
            none.

    Raises:
        DataError: if ``source`` does not exist or says no classes, or says two of one image.
    """
    if source.is_file() and not pattern:
        if source.suffix.lower() not in {*SUFFIXES, ".txt"}:
            raise DataError(
                f"{source} holds no table of images and classes: name a file that ends in .csv or "
                ".tsv, or a folder"
            )
        return _listed([source], None)
    if not source.is_dir():
        raise DataError(
            f"{source} is not a folder: name one with a subfolder of images a class, or a CSV file "
            "of files and classes"
        )
    found = walk(source)
    if pattern:
        return _by_names(found, NamePattern(pattern))
    root = _innermost(source, found)
    classes = by_class(found, root)
    tables = _tables(root)
    if _is_divided(root, classes, found):
        files = _divided(root, classes, found)
    elif len(with_images(classes)) > 1 and not _are_sets(classes):
        pairs = _pairs(classes)
        found.passed_over[BESIDE] += len(found.files) - len(pairs)
        files = LabelledFiles(pairs, (), tuple(empty_classes(classes)))
    elif tables:
        return _listed(tables, found)
    else:
        raise DataError(_no_classes(root, classes, found))
    notes = [*found.notes(), *files.notes]
    if root != source:
        notes.append(f"the classes are the subfolders of {root}")
    if tables:
        notes.append(f"{tables[0]} is not read, for there are class folders: name it to use it")
    return LabelledFiles(files.train, files.held_out, tuple(notes))


def _innermost(root: Path, found: Walk) -> Path:
    """The folder of the class folders: ``root``, or the only one in it that holds subfolders."""
    while not _tables(root):
        inner = {file.relative_to(root).parts[0] for file in found.below(root)}
        deep = [file for file in found.below(root) if len(file.relative_to(root).parts) > 2]
        if len(inner) != 1 or not deep or not with_images(by_class(found, root / inner.pop())):
            break
        root = root / deep[0].relative_to(root).parts[0]
    return root


def _are_sets(classes: dict[str, list[Path]]) -> bool:
    return all(name.lower() in _TRAIN | _HELD_OUT for name in with_images(classes))


def _is_divided(root: Path, classes: dict[str, list[Path]], found: Walk) -> bool:
    """Whether the folders are a training set of class folders, and sets of held-out images."""
    inner = {
        name: with_images(by_class(found, root / name)).keys()
        for name in with_images(classes)
        if name.lower() in _TRAIN | _HELD_OUT
    }
    train = [name for name in inner if name.lower() in _TRAIN]
    if len(train) != 1 or len(inner[train[0]]) < 2:
        return False
    # Beside them may be a folder of images without classes; but train may be a class of vehicles.
    alike = any(inner[name] & inner[train[0]] for name in inner if name != train[0])
    return alike or _are_sets(classes)


def _divided(root: Path, sets: dict[str, list[Path]], found: Walk) -> LabelledFiles:
    pairs: dict[bool, Pairs] = {True: (), False: ()}
    notes = []
    for name in with_images(sets):
        classes = by_class(found, root / name) if name.lower() in _TRAIN | _HELD_OUT else {}
        own = _pairs(classes)
        found.passed_over[f"images of {name} in no class folder"] += len(sets[name]) - len(own)
        pairs[name.lower() in _TRAIN] += own
        notes += empty_classes(classes) if name.lower() in _TRAIN else []
    found.passed_over[BESIDE] += len(found.files) - sum(map(len, sets.values()))
    return _checked(pairs[True], pairs[False], notes)


def _checked(train: Pairs, held_out: Pairs, notes: Sequence[str]) -> LabelledFiles:
    """Without held-out images of classes that have no training images."""
    known = {label for _, label in train}
    kept = tuple(pair for pair in held_out if pair[1] in known)
    foreign = sorted({label for _, label in held_out} - known)
    if foreign:
        listed = ", ".join(f"'{name}'" for name in foreign[:5]) + ", ..." * (len(foreign) > 5)
        images = counted(len(held_out) - len(kept), "held-out image")
        notes = [*notes, f"{images} passed over, of classes without training images: {listed}"]
    if kept:
        number = counted(len(kept), "held-out image")
        notes = [*notes, f"{number} kept for measuring the accuracy and not trained on"]
    return LabelledFiles(train, kept, tuple(notes))


def _pairs(classes: dict[str, list[Path]]) -> Pairs:
    return tuple((file, name) for name, files in classes.items() for file in files)


def _by_names(found: Walk, pattern: NamePattern) -> LabelledFiles:
    below = [(file, file.relative_to(found.root)) for file in found.files]
    sets = {inner.parts[0].lower() for _, inner in below if len(inner.parts) > 1}
    pairs: dict[bool, list[tuple[Path, str]]] = {True: [], False: []}
    for file, inner in below:
        label = pattern.label(inner)
        apart = bool(sets & _TRAIN) and inner.parts[0].lower() in _HELD_OUT
        if label:
            pairs[not apart].append((file, label))
        else:
            found.passed_over["images whose name does not fit the pattern"] += 1
    if not pairs[True]:
        raise DataError(
            f"no name of the {counted(len(below), 'image')} in {found.root} fits the pattern: name "
            f"them as {pattern.text}, or change the pattern"
        )
    train = tuple(sorted(pairs[True], key=lambda pair: pair[1]))
    return _checked(train, tuple(pairs[False]), found.notes())


def _tables(root: Path) -> list[Path]:
    """The files of ``root`` that list images with their classes."""
    tables = []
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in SUFFIXES and not is_hidden(path.name) and path.is_file():
            try:
                read_manifest(path)
            except DataError:
                continue
            tables.append(path)
    return tables


def _listed(tables: Sequence[Path], found: Walk | None) -> LabelledFiles:
    """The images of one table, or of tables that are named by their sets."""
    if len(tables) > 1 and not all(_set_of(path) for path in tables):
        raise DataError(
            f"{tables[0]} and {tables[1]} both list images with their classes: name the one to use"
        )
    pairs: dict[bool, Pairs] = {True: (), False: ()}
    notes: list[str] = []
    passed_over: Counter[str] = Counter()
    for path in tables:
        files, over, said = files_of(read_manifest(path), path, found)
        passed_over += over
        notes += said
        own = _set_of(path) if len(tables) > 1 else ""
        for file, row in files:
            pairs[(row.split or own) not in _HELD_OUT] += ((file, row.label),)
    if not pairs[True]:
        raise DataError(f"{tables[0]} lists no image to train on: {_first(notes, passed_over)}")
    if found:
        listed = {file for part in pairs.values() for file, _ in part}
        unlisted = sum(file not in listed for file in found.files)
        found.passed_over[f"images that {tables[0].name} does not list"] += unlisted
        found.passed_over += passed_over
        # The tables themselves are no images, but read.
        found.passed_over[tables[0].suffix.lower()] -= len(tables)
        notes = [*found.notes(), *notes]
    elif passed_over:
        notes = [sentence(passed_over), *notes]
    train = tuple(sorted(pairs[True], key=lambda pair: pair[1]))
    return _checked(train, pairs[False], notes)


def _first(notes: Sequence[str], passed_over: Counter[str]) -> str:
    return "; ".join([*notes, sentence(passed_over)]) or "it has no rows but names of columns"


def _set_of(table: Path) -> str:
    """The set that a table is named by, as in train.csv and labels_test.csv; empty for none."""
    words = re.split(r"[\W_]+", table.stem.lower())
    return next((word for word in words if word in _TRAIN | _HELD_OUT), "")


def _no_classes(root: Path, classes: dict[str, list[Path]], found: Walk) -> str:
    said = "; ".join(found.notes())
    over = f" ({said})" if said else ""
    full = list(with_images(classes))
    if not found.files:
        return f"{root} has no images{over}: name a folder with a subfolder of images a class"
    if len(full) > 1:
        return f"the images of {root} are in {' and '.join(full)}, not in class folders: {_REMEDY}"
    number = counted(len(full), "class subfolder")
    return (
        f"{root} has {number} with images and {counted(len(found.files), 'image')}{over}; at "
        f"least 2 are needed: {_REMEDY}"
    )
