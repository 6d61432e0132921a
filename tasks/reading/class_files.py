"""The classes of a folder with their image files, and the splits that folders or tables say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial as bind
from pathlib import Path

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_lists import SPLITS
from fewshot_blo.tasks.reading.division import IMAGE_SPLITS, SPLIT_OF, check_parts, stored_parts
from fewshot_blo.tasks.reading.formats import suffix_of
from fewshot_blo.tasks.reading.image_folders import BESIDE, by_class, empty_classes, with_images
from fewshot_blo.tasks.reading.listed_files import files_of
from fewshot_blo.tasks.reading.manifest import SUFFIXES, read_manifest
from fewshot_blo.tasks.reading.walk import Walk, composed, sentence, walk

# One image: its file, its class and the position of its split, None if none is said.
Listed = tuple[Path, str, "int | None"]


@dataclass(frozen=True)
class ClassFiles:
    """Classes and their image files.

    Attributes:
        classes: files by class name, in order of the names.
        parts: class names of training, validation and test; None where the files say none.
        notes: sentences on what was passed over and how the files were read.
    """

    classes: dict[str, list[Path]]
    parts: list[list[str]] | None
    notes: list[str]


def class_files(root: Path, table: Path | None, *, csv: Path | None) -> ClassFiles:
    """Finds the classes of ``root`` and their images.

    They are said by the first of these that there is: ``table``; tables named train, val and test
    in ``root``; folders train, val and test of class folders; class folders.

    Args:
        root: folder of the images.
        table: a CSV file of images and classes, and perhaps of splits; or a JSON file of easyfsl;
            or a folder with one of either for each split; None to look for these in ``root``.
        csv: a table of the classes and their splits, by which the caller divides them instead of by
            these; None for none.

    Raises:
        DataError: if ``root`` is no folder, or a table is wrong, or names images with two classes.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give a folder with one subfolder per class")
    if table is not None and table.is_file():
        return _listed(root, [(table, None)], csv)
    tables = _tables(root if table is None else table)
    # In ``root`` may be files of these names that are about something else.
    if tables and (table is not None or _lists_images(tables[0][0])):
        return _listed(root, tables, csv)
    if table is not None:
        raise DataError(
            f"{table} is no table, nor a folder of tables train, val and test that end in .csv, "
            ".tsv or .json: name one"
        )
    found = _walked(root, csv)
    classes = by_class(found, root)
    sets = _sets(found, root, classes)
    if sets:
        return _divided(root, found, sets, divide=csv is None)
    found.passed_over[BESIDE] += len(found.files) - sum(map(len, classes.values()))
    return ClassFiles(with_images(classes), None, [*found.notes(), *empty_classes(classes)])


def _walked(root: Path, csv: Path | None) -> Walk:
    """The images of a folder; a table of the splits in it is read, and so not passed over."""
    found = walk(root)
    if csv is not None and csv.is_relative_to(root):
        found.passed_over[suffix_of(csv.name)] -= 1
    return found


def _tables(folder: Path) -> list[tuple[Path, int | None]]:
    """The tables of a folder that are named by its splits, if each split has one."""
    for suffix in (*sorted(SUFFIXES), ".json"):
        named = [(folder / f"{split}{suffix}", SPLIT_OF[split]) for split in SPLITS]
        if all(path.is_file() for path, _ in named):
            return list(named)
    return []


def _lists_images(table: Path) -> bool:
    try:
        if table.suffix.lower() == ".json":
            return "class_roots" in json.loads(table.read_text(encoding="utf-8-sig"))
        return bool(read_manifest(table))
    except (OSError, TypeError, ValueError):  # A DataError too.
        return False


def _sets(found: Walk, root: Path, classes: dict[str, list[Path]]) -> dict[str, int]:
    """The positions of the splits that all folders with images are, each of class folders."""
    full = with_images(classes)
    sets = {name: SPLIT_OF[name.lower()] for name in full if name.lower() in SPLIT_OF}
    inner = all(len(f.relative_to(root).parts) > 2 for name in full for f in full[name])
    return sets if len(sets) == len(full) > 1 and 0 in sets.values() and inner else {}


def _divided(root: Path, found: Walk, sets: dict[str, int], *, divide: bool) -> ClassFiles:
    listed: list[Listed] = []
    empty: list[str] = []
    for folder, split in sets.items():
        classes = by_class(found, root / folder)
        empty += empty_classes(classes)
        listed += [(file, name, split) for name, files in classes.items() for file in files]
    found.passed_over[BESIDE] += len(found.files) - len(listed)
    return _grouped(listed, str(root), [*found.notes(), *empty], divide)


def _grouped(listed: Sequence[Listed], source: str, notes: list[str], divide: bool) -> ClassFiles:
    """The images by class, and the parts that their splits say."""
    classes: dict[str, list[Path]] = {}
    stored: dict[str, set[int]] = {}
    for file, name, split in sorted(listed, key=lambda image: image[1]):
        classes.setdefault(name, []).append(file)
        if split is not None:
            stored.setdefault(name, set()).add(split)
    if not stored or not divide:
        return ClassFiles(classes, None, notes)
    parts = stored_parts(stored)
    if parts is None:
        return ClassFiles(classes, None, [*notes, f"{source}: {IMAGE_SPLITS}"])
    check_parts(parts, source)
    return ClassFiles(classes, parts, notes)


def _listed(root: Path, tables: Sequence[tuple[Path, int | None]], csv: Path | None) -> ClassFiles:
    """The images of tables, each of a split or with a column that says it."""
    found = _walked(root, csv)
    listed: list[Listed] = []
    passed_over: Counter[str] = Counter()
    notes: list[str] = []
    for table, split in tables:
        read: Callable[..., tuple[list[Listed], Counter[str], list[str]]]
        read = bind(_specified if table.suffix.lower() == ".json" else _rows_of, root, found)
        images, over, said = read(table, split)
        listed += images
        passed_over += over
        notes += said
    source = str(tables[0][0] if len(tables) == 1 else tables[0][0].parent)
    if not listed:
        reason = "; ".join([*notes, sentence(passed_over)])
        raise DataError(f"{source} lists no image that is there: {reason or 'it has no rows'}")
    known = {file for file, _, _ in listed}
    found.passed_over += passed_over
    found.passed_over["images that no table lists"] += sum(f not in known for f in found.files)
    for table, _ in tables:  # They are no images, but read.
        found.passed_over[table.suffix.lower()] -= table.is_relative_to(root)
    return _grouped(listed, source, [*found.notes(), *notes], csv is None)


def _rows_of(
    root: Path, found: Walk, table: Path, split: int | None
) -> tuple[list[Listed], Counter[str], list[str]]:
    files, passed_over, notes = files_of(read_manifest(table), table, found)
    listed: list[Listed] = []
    for file, row in files:
        if split is None and row.split and row.split not in SPLIT_OF:
            raise DataError(
                f"{table}, line {row.line}: split is '{row.split}': it must be train, validation "
                "or test"
            )
        listed.append((file, row.label, SPLIT_OF.get(row.split) if split is None else split))
    undivided = [name for _, name, own in listed if own is None]
    if undivided and len(undivided) < len(listed):
        raise DataError(
            f"{table} gives no split for {len(undivided)} images, the first of class "
            f"'{undivided[0]}': fill the column, or leave it out to divide the classes at random"
        )
    return listed, passed_over, notes


def _specified(
    root: Path, found: Walk, table: Path, split: int | None
) -> tuple[list[Listed], Counter[str], list[str]]:
    """The images of the folders that a JSON file of easyfsl lists.

    It holds ``class_names`` and ``class_roots``, the folders of the classes relative to where a
    program starts (sicara/easy-few-shot-learning, easyfsl/datasets/easy_set.py); here also below
    ``root`` and beside the file, by the last parts of their paths.
    """
    try:
        content = json.loads(table.read_text(encoding="utf-8-sig"))
        names, roots = content["class_names"], content["class_roots"]
    except (OSError, ValueError) as error:
        raise DataError(f"{table} cannot be read as JSON ({error}): correct it") from error
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{table} lacks {error}: it must hold the lists class_names and class_roots"
        ) from error
    texts = [isinstance(v, list) and all(isinstance(t, str) for t in v) for v in (names, roots)]
    if not all(texts) or len(names) != len(roots):
        raise DataError(f"{table}: class_names and class_roots must be lists of text of one length")
    listed: list[Listed] = []
    for name, place in zip(names, roots, strict=True):
        folder = _class_root(Path(place), [root, table.parent])
        if folder is None:
            raise DataError(
                f"{table}: the folder '{place}' of class '{name}' is not in {root}: put it there"
            )
        # Not those of ``found`` in the folder, which would be sought among all files each time.
        listed += [(file, composed(name), split) for file in walk(folder).files]
    return listed, Counter(), []


def _class_root(place: Path, folders: Sequence[Path]) -> Path | None:
    """The folder that a path means: the path itself, or its last parts below a folder."""
    parts = [part for part in place.parts if part not in (place.anchor, "..")]
    inner = [Path(*parts[first:]) for first in range(len(parts))]
    candidates = [*(folder / end for end in inner for folder in folders), place]
    return next((path for path in candidates if path.is_dir()), None)
