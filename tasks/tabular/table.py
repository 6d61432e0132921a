"""Columns of a table by name: numbers with NaN where missing, or texts with None."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.tasks.errors import DataError

Table: TypeAlias = Any
"""A DataFrame of pandas or polars, a mapping of columns, a structured NumPy array, or the path of a
csv file with a header."""

_MISSING = frozenset(("", "na", "n/a", "nan", "<na>", "nat", "null", "none", "?"))


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: its name.
        values: ``[M]``: float64 with NaN where missing, or strings with None.
    """

    name: str
    values: NDArray[Any]

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers."""
        return bool(self.values.dtype == np.float64)

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which values are missing, ``[M]``."""
        # NaN alone differs from itself.
        return np.array([value is None or value != value for value in self.values], dtype=bool)

    def needed(self, why: str) -> Column:
        """The column itself.

        Raises:
            DataError: if a value is missing; ``why`` says what cannot be without.
        """
        rows = np.flatnonzero(self.missing)
        if len(rows):
            raise DataError(f"{told(self.name, rows)}: {why}")
        return self


def told(name: str, rows: NDArray[np.int64]) -> str:
    """How many values of a column are missing, and the first of their rows, counted from 0."""
    first = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    count = f"{len(rows)} value{' is' if len(rows) == 1 else 's are'} missing"
    return f"{count} in column '{name}' (row{'' if len(rows) == 1 else 's'} {first})"


def columns_of(table: Table, texts: Collection[str] = ()) -> dict[str, Column]:
    """The columns of a table by name.

    Args:
        table: as described at ``Table``.
        texts: columns whose numbers are names, such as postcodes.

    Raises:
        DataError: if the table cannot be read, or its columns differ in length.
    """
    raw: dict[str, Any]
    if isinstance(table, str | Path):
        raw = _read_csv(Path(table).expanduser())
    elif isinstance(table, np.ndarray) and (fields := table.dtype.names):
        raw = {name: table[name] for name in fields}
    elif hasattr(table, "columns") or isinstance(table, Mapping):
        names: Any = getattr(table, "columns", table)
        raw = {str(name): table[name] for name in names}
    else:
        raise DataError(
            f"the table is a {type(table).__name__}: it must be a DataFrame, a mapping of columns, "
            "a structured array or the path of a csv file"
        )
    columns = {name: _column(name, np.asarray(x), name in texts) for name, x in raw.items()}
    lengths = {name: len(column.values) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the columns differ in length: {lengths}")
    return columns


def named(columns: Mapping[str, Column], name: str, what: str) -> Column:
    """The column of a name.

    Raises:
        DataError: if there is none, or it has infinite values; ``what`` is the setting that names
            it.
    """
    if name not in columns:
        raise DataError(f"{what} is '{name}': there is no such column among {', '.join(columns)}")
    column = columns[name]
    if column.is_numeric and len(rows := np.flatnonzero(np.isinf(column.values))):
        raise DataError(
            f"column '{name}' is infinite in row {rows[0]}: drop such rows, or leave the column out"
        )
    return column


def _column(name: str, values: NDArray[Any], is_text: bool) -> Column:
    if values.ndim != 1:
        raise DataError(f"column '{name}' has shape {list(values.shape)}: it must be [rows]")
    if values.dtype.kind in "Mm":
        raise DataError(
            f"column '{name}' is {values.dtype}: turn times into numbers, such as days, first"
        )
    if values.dtype.kind in "biuf" and not is_text:
        return Column(name, values.astype(np.float64))
    # Of a number that is a name, 7.0 because another is missing, the text is 7.
    whole = values.dtype.kind == "f"
    texts = [f"{v:.0f}" if whole and float(v).is_integer() else str(v).strip() for v in values]
    known = [None if text.lower() in _MISSING else text for text in texts]
    if is_text:
        return Column(name, _objects(known))
    try:
        numbers = [np.nan if text is None else float(text) for text in known]
    except ValueError:
        return Column(name, _objects(known))
    return Column(name, np.array(numbers, dtype=np.float64))


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    return np.array(values, dtype=object)


def _read_csv(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # Not UTF-8, or no path.
        raise DataError(f"{path} cannot be read ({error}): give a csv file in UTF-8") from error
    first = text.partition("\n")[0]
    separator = max(",;\t|", key=first.count)
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if row]
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV ({error}): correct it") from error
    if len(rows) < 2:
        raise DataError(f"{path} has no rows: it needs a header and at least one row")
    header = [name.strip() for name in rows[0]]
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path} has several columns named '{twice[0]}': rename them")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise DataError(
                f"{path} has {len(row)} values in row {number} and {len(header)} columns: each row "
                "must have one value for each column"
            )
    return dict(zip(header, zip(*rows[1:], strict=True), strict=True))
