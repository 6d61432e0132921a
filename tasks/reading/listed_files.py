"""The files of a table's rows, found beside the table or anywhere below a folder."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.manifest import Row
from fewshot_blo.tasks.reading.walk import Walk, composed, walk

NO_LABEL = "rows without a class"
NO_FILE = "rows without a file"
ABSENT = "rows whose file is not there"
ADDRESS = "rows with an address instead of a file (download it)"


class Finder:
    """Finds files by the names that tables give them.

    A name is a path relative to the table or to a folder, to the folder of its class or to a folder
    ``images`` in them, or the name of one file below the folder, in any case, with or without its
    suffix.

    Args:
        base: folder of the table.
        found: images of the folder; None to walk through ``base`` once that is needed.
    """

    def __init__(self, base: Path, found: Walk | None) -> None:
        self.base = base
        self.found = found
        self._by_name: dict[str, list[Path]] | None = None

    def __call__(self, name: str, label: str = "") -> Path | None:
        """The file of this name, which is of this class; None if there is none.

        Raises:
            DataError: if several files have the name.
        """
        folders = [self.base] + ([self.found.root] if self.found else [])
        below = ["", "images"] + ([label, f"images/{label}"] if label else [])
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            for inner in below:
                for folder in folders:
                    if _is_file(folder / inner / spelling):
                        return folder / inner / spelling
        files = self._index().get(_plain(name.replace("\\", "/").rsplit("/", 1)[-1]), [])
        if len(files) > 1:
            raise DataError(
                f"'{name}' may be {files[0]} or {files[1]}: write its path relative to {self.base}"
            )
        return files[0] if files else None

    def _index(self) -> dict[str, list[Path]]:
        if self._by_name is None:
            self.found = self.found or walk(self.base)
            self._by_name = defaultdict(list)
            for file in self.found.files:
                for name in {_plain(file.name), _plain(file.stem)}:
                    self._by_name[name].append(file)
        return self._by_name


def _plain(name: str) -> str:
    return composed(name).casefold()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # A name that is too long, or has a null character.
        return False


def files_of(
    rows: Sequence[Row], table: Path, found: Walk | None
) -> tuple[list[tuple[Path, Row]], Counter[str], list[str]]:
    """The file of each row, the number of rows passed over by kind, and sentences on them.

    Raises:
        DataError: if a file is listed with two classes, or a name fits several files.
    """
    find = Finder(table.parent, found)
    taken: dict[Path, Row] = {}
    passed_over: Counter[str] = Counter()
    absent: list[Row] = []
    for row in rows:
        local = row.file and row.label and "://" not in row.file
        file = find(row.file, row.label) if local else None
        if file is None:
            passed_over[_reason(row)] += 1
            absent += [row] if _reason(row) == ABSENT else []
        elif taken.setdefault(file, row).label != row.label:
            first = taken[file]
            raise DataError(
                f"{table} lists {row.file} as '{first.label}' in line {first.line} and as "
                f"'{row.label}' in line {row.line}: correct one of them"
            )
    notes = [
        f"{table}, line {row.line}: there is no file '{row.file}', the first of such rows"
        for row in absent[:1]
    ]
    return list(taken.items()), passed_over, notes


def _reason(row: Row) -> str:
    if not row.file:
        return NO_FILE
    if not row.label:
        return NO_LABEL
    return ADDRESS if "://" in row.file else ABSENT
