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


def comma_separated(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV, with a column for every name that occurs."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for r in records for name in r)))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


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
