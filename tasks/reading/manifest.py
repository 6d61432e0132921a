"""Tables of image files and their classes: CSV files with any usual column names and encoding."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.formats import suffix_of, suffixes
from fewshot_blo.tasks.reading.walk import composed

SUFFIXES = frozenset({".csv", ".tsv"})

# Of several columns that fit, the first in these lists is taken: a class's name before its number.
_FILES = (
    *("filename", "filepath", "file", "path", "imagepath", "imagefile", "imagefilename"),
    *("imagename", "imgpath", "imgname", "imgfile", "image", "img", "picture", "photo"),
    *("imageid", "id", "name"),
)
_LABELS = (
    *("labelname", "classname", "categoryname", "label", "labels", "class", "classes"),
    *("finelabel", "category", "categories", "target", "species", "breed", "y", "tag"),
    *("labelid", "classid", "categoryid"),
)
_SPLITS = ("split", "set", "subset", "partition")
_ENCODINGS = ("utf-8-sig", "cp1252", "latin-1")  # The last one reads anything.
_SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Row:
    """One image of a table.

    Attributes:
        line: line of the table, from 1.
        file: name of the image's file; may be empty.
        label: name of its class; may be empty.
        split: name of its set in lower case, such as train; may be empty.
    """

    line: int
    file: str
    label: str
    split: str


def read_manifest(path: Path) -> list[Row]:
    """The images and classes that a table lists.

    The separator is a comma, semicolon, tab or vertical bar, the encoding UTF-8, UTF-16 or that of
    Windows. The first line names the columns; a table of files, classes and perhaps sets needs no
    names if the first column is of image files. Without a column of classes, the class of a file
    ``class/name`` is its folder.

    Raises:
        DataError: if the file cannot be read, or has no column of files or of classes.
    """
    found: list[str] = []
    for rows in _separated(path):
        header = rows[0][1] if rows else []
        found = max(found, header, key=len)
        columns = [_column(header, names) for names in (_FILES, _LABELS, _SPLITS)]
        if columns[0] is not None and columns[1] is not None:
            return [_row(line, cells, columns) for line, cells in rows[1:]]
        if len(header) in (2, 3) and suffix_of(header[0]) in suffixes():
            unnamed = (0, 1, 2 if len(header) == 3 else None)
            return [_row(line, cells, unnamed) for line, cells in rows]
        if columns[0] is not None or len(header) == 1:
            named = rows[1:] if columns[0] is not None else rows
            places = (columns[0] or 0, None, columns[2])
            by_folder = _by_folder([_row(line, cells, places) for line, cells in named])
            if by_folder:
                return by_folder
    raise DataError(
        f"{path} has the columns {', '.join(map(repr, found)) or 'of an empty file'}: it needs one "
        "of image files, such as file, filename, path or image, and one of classes, such as label, "
        "class or category"
    )


def read_class_table(path: Path) -> list[Row]:
    """The classes and sets that a table lists, with the columns class and split; files are empty.

    Separators and encodings are those of ``read_manifest``.

    Raises:
        DataError: if the file cannot be read, or has no such columns.
    """
    absent: list[str] = ["class", "split"]
    for rows in _separated(path):
        header = rows[0][1] if rows else []
        columns = {"class": _column(header, _LABELS), "split": _column(header, _SPLITS)}
        missing = [name for name, column in columns.items() if column is None]
        if not missing:
            return [_row(n, cells, (None, *columns.values())) for n, cells in rows[1:]]
        absent = min(absent, missing, key=len)
    raise DataError(
        f"{path}, line 1: column {' and '.join(absent)} is missing: the columns must be class,split"
    )


def _separated(path: Path) -> Iterator[list[tuple[int, list[str]]]]:
    """Line number and cells of the rows, as each of the separators divides them."""
    text = _text(path)
    first, _, rest = text.partition("\n")
    skipped = 0
    if first.lower().startswith("sep="):  # A line that Excel writes.
        text, skipped = rest, 1
    for separator in _SEPARATORS:
        yield [(line + skipped, cells) for line, cells in _rows(text, separator, path)]


def _by_folder(rows: Sequence[Row]) -> list[Row]:
    """The rows with their files' folders as classes; empty unless all are files of a folder."""
    parts = [row.file.replace("\\", "/").split("/") for row in rows]
    if not all(len(part) > 1 and suffix_of(part[-1]) in suffixes() for part in parts):
        return []
    return [replace(row, label=composed(part[-2])) for row, part in zip(rows, parts, strict=True)]


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): allow reading it") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings: tuple[str, ...] = ("utf-16",)
    elif b"\0" in content[:200]:  # UTF-16 without a byte-order mark.
        encodings = ("utf-16-be" if content[:1] == b"\0" else "utf-16-le",)
    else:
        encodings = _ENCODINGS
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise DataError(f"{path} cannot be read as text in UTF-16: save it in UTF-8")


def _rows(text: str, separator: str, path: Path) -> list[tuple[int, list[str]]]:
    """Line number and cells of each row that is not empty."""
    lines = text.replace("\0", "\ufffd").split("\n")  # Python 3.10 refuses files with a NUL.
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num} cannot be read as CSV ({error}): correct the line"
        ) from error
    return [(line, cells) for line, cells in rows if any(cells)]


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    """Place of the first of these names in the header, whatever their case and punctuation."""
    plain = [re.sub(r"[\W_]", "", cell.lower()) for cell in header]
    return next((plain.index(name) for name in names if name in plain), None)


def column_of(names: Sequence[str], what: str) -> int | None:
    """Place of the column of images (``image``) or classes (``label``) by usual names."""
    return _column(names, {"image": _FILES, "label": _LABELS}[what])


def _row(line: int, cells: Sequence[str], columns: Sequence[int | None]) -> Row:
    file, label, split = (
        cells[column] if column is not None and column < len(cells) else "" for column in columns
    )
    return Row(line, file, composed(label), split.lower())
