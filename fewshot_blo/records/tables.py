"""Tables in Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from tabulate import tabulate

from fewshot_blo.records.files import atomic_write

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for fewer than two values."""
    return stdev(values) if len(values) > 1 else math.nan


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded columns.

    Args:
        columns: column names.
        rows: formatted cells, one per column.
    """
    head, *lines = ([_cell(text) for text in row] for row in (columns, *rows))
    # Numbers are formatted already: 0.50 must not become 0.5.
    return tabulate(lines, head, tablefmt="github", disable_numparse=True) + "\n"


def _cell(text: str) -> str:
    """Escapes what would end a cell or a row."""
    return text.replace("|", "\\|").replace("\n", " ")


def comma_separated(
    records: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), *, separator: str = ","
) -> str:
    """Records as CSV.

    A text that a spreadsheet would take for a formula, such as ``=1+1``, gets an apostrophe in
    front. Numbers are left as they are.

    Args:
        records: rows, by column name.
        columns: the columns; by default a column for every name that occurs.
        separator: what separates cells.

    Source: OWASP, "CSV Injection".
    """
    text = io.StringIO()
    names = list(columns) or list(dict.fromkeys(name for r in records for name in r))
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(map(_inert, names))
    writer.writerows([_inert(record.get(name, "")) for name in names] for record in records)
    return text.getvalue()


def _inert(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA) and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def write_table(folder: Path, text: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes ``table.md`` and ``table.csv``.

    Args:
        folder: folder of both files.
        text: content of ``table.md``.
        records: rows of ``table.csv``, by column name.
    """
    with atomic_write(folder / "table.md") as file:
        file.write(text.encode())
    with atomic_write(folder / "table.csv") as file:
        file.write(comma_separated(records).encode())
