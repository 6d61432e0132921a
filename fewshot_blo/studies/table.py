"""The table of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.tables import comma_separated

_DEVIATION = " sd"


def write_table(records: Sequence[Mapping[str, Any]], folder: Path, *, seeds: int) -> str:
    """Writes ``table.md`` and ``table.csv``.

    Args:
        records: lines with a method and figures.
        folder: for the files.
        seeds: that figures are means over.

    Returns:
        The text of the first.
    """
    every = list(dict.fromkeys(name for record in records for name in record))
    columns = [name for name in every if not name.endswith(_DEVIATION)]
    lines = [[name.replace("|", "\\|") for name in columns], ["---"] * len(columns)]
    lines += [[_cell(record, name) for name in columns] for record in records]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    if seeds > 1:
        text += f"\nMeans over {seeds} seeds ± their standard deviation.\n"
    with atomic_write(folder / "table.md") as file:
        file.write(text.encode())
    with atomic_write(folder / "table.csv") as file:
        file.write(comma_separated(records).encode())
    return text


def _cell(record: Mapping[str, Any], name: str) -> str:
    value, deviation = record.get(name), record.get(name + _DEVIATION)
    if not isinstance(value, float):
        return "" if value is None else str(value)
    text = f"{value:.4g}"
    return text if deviation is None else f"{text} ± {deviation:.2g}"
