"""Images and labels in parquet files, as Hugging Face's hub and its library datasets write them."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.errors import ConfigurationError, pip_install
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.columns import NO_LABEL, Columns, class_of, columns_of, features_of
from fewshot_blo.tasks.reading.division import SPLIT_OF
from fewshot_blo.tasks.reading.images import Source, read_image


@dataclass(frozen=True)
class Rows:
    """The labelled images of parquet files.

    Attributes:
        files: the files, sorted.
        columns: where images and labels are.
        labels: class name of each row of each file, None for a row without one.
        splits: position of the split of each file, None if its path says none.
        passed_over: number of rows that were passed over, by kind.
    """

    files: Sequence[Path]
    columns: Columns
    labels: Sequence[Sequence[str | None]]
    splits: Sequence[int | None]
    passed_over: Counter[str]


def find_rows(root: Path, image: str, label: str) -> Rows:
    """Finds the parquet files in a folder, or the one that ``root`` is, and reads their labels.

    Args:
        root: folder or file; of a folder of Hugging Face's cache, the snapshot of its main branch.
        image, label: names of the columns; empty to find them.

    Raises:
        ConfigurationError: if pyarrow is not installed.
        DataError: if there are no files, or columns or labels are not such.
    """
    files = _files(root)
    if not files:
        raise DataError(f"{root} holds no parquet file: name a folder with files *.parquet")
    parquet = _pyarrow()
    columns = [_columns(file, _schema(parquet, file), image, label) for file in files]
    for file, other in zip(files, columns, strict=True):
        if other != columns[0]:
            raise DataError(
                f"{file} has other columns or class names ({other.image}, {other.label}) than "
                f"{files[0]} ({columns[0].image}, {columns[0].label}): name a folder of one data "
                "set, or the columns"
            )
    passed_over: Counter[str] = Counter()
    labels = [_labels(parquet, file, columns[0], passed_over) for file in files]
    return Rows(files, columns[0], labels, [split_of(file, root) for file in files], passed_over)


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"parquet files need pyarrow: {pip_install('.[formats]')}, or install pyarrow itself"
        ) from error


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    if (root / "refs" / "main").is_file():
        root = root / "snapshots" / (root / "refs" / "main").read_text().strip()
    found = sorted(root.rglob("*.parquet"))
    hidden = [any(p.startswith(".") for p in f.relative_to(root).parts) for f in found]
    return [f for f, is_hidden in zip(found, hidden, strict=True) if not is_hidden and f.is_file()]


def split_of(file: Path, root: Path) -> int | None:
    """The position of the split that a file's name begins with, or else a folder below ``root``.

    As in ``data/train-00000-of-00013.parquet`` and ``default/train/0000.parquet``.
    """
    word = re.split(r"[\W_]+", file.stem.lower())[0]
    inner = file.relative_to(root).parts[:-1] if file != root else ()
    named = (name for name in (word, *reversed(inner)) if name.lower() in SPLIT_OF)
    return next((SPLIT_OF[name.lower()] for name in named), None)


def _schema(parquet: Any, file: Path) -> Any:
    try:
        return parquet.read_schema(file)
    except (OSError, ValueError) as error:  # pyarrow's errors of content are ValueErrors.
        raise DataError(
            f"{file} cannot be read as parquet ({_line(error)}): download it again"
        ) from error


def _columns(file: Path, schema: Any, image: str, label: str) -> Columns:
    types = {name: str(schema.field(name).type) for name in schema.names}
    return columns_of(str(file), features_of(schema), types, image, label)


def _labels(
    parquet: Any, file: Path, columns: Columns, passed_over: Counter[str]
) -> list[str | None]:
    try:
        values = parquet.read_table(file, columns=[columns.label])[columns.label].to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: column {columns.label} cannot be read ({_line(error)}): download it again"
        ) from error
    names = [class_of(v, columns.names, f"{file}, row {n}") for n, v in enumerate(values)]
    if missing := names.count(None):
        passed_over[NO_LABEL] += missing
    return names


def images_of(rows: Rows, size: int, color: bool) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Yields the place of the file, the row and the pixels ``[C, size, size]`` of each image.

    Rows without a class are left out. A batch of encoded images is in memory at a time.

    Raises:
        DataError: if an image cannot be decoded.
    """
    parquet = _pyarrow()
    for place, file in enumerate(rows.files):
        for row, value in enumerate(_values(parquet, file, rows.columns.image)):
            if rows.labels[place][row] is not None:
                name = f"in row {row} of {file}"
                source = _content(value, file, name)
                yield place, row, read_image(source, size=size, color=color, name=name)


def _values(parquet: Any, file: Path, column: str) -> Iterator[Any]:
    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=64, columns=[column]):
                yield from batch.column(0).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: column {column} cannot be read ({_line(error)}): download it again"
        ) from error


def _line(error: Exception) -> str:
    """The message of an error of pyarrow, which may have several lines, in one."""
    return " ".join(str(error).split())


def _content(value: Any, file: Path, name: str) -> Source:
    """The content of an image: of bytes, of bytes and path, of a path, or of nested lists."""
    path = value if isinstance(value, str) else None
    if isinstance(value, dict):
        path, value = value.get("path"), value.get("bytes")
    if isinstance(value, bytes):
        return value
    if isinstance(path, str):
        inside = (file.parent / path).resolve()
        # A path of another machine, or out of the folder, is not followed.
        if inside.is_relative_to(file.parent.resolve()) and inside.is_file():
            return inside
        raise DataError(
            f"image {name} is the file '{path}', which is not in {file.parent}: write the parquet "
            "file with its images inside (push_to_hub and to_parquet of datasets do)"
        )
    with suppress(ValueError, TypeError, OverflowError):
        if isinstance(value, list):
            pixels = np.asarray(value, np.int64)  # NumPy 1 lets 300 pass as a uint8.
            if pixels.size and pixels.min() >= 0 and pixels.max() <= 255:
                return pixels.astype(np.uint8)
    raise DataError(
        f"image {name} is {'empty' if value is None else 'no image'}: leave the row out, or set "
        "image to another column"
    )
