"""The table of a study in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewshot_blo.records.tables import markdown

_DEVIATION = " sd"


def study_table(records: Sequence[Mapping[str, Any]], *, seeds: int) -> str:
    """The table in Markdown.

    Args:
        records: lines of the table: a method and its figures.
        seeds: number of seeds over which figures are averaged.
    """
    every = list(dict.fromkeys(name for record in records for name in record))
    columns = [name for name in every if not name.endswith(_DEVIATION)]
    text = markdown(columns, [[_cell(record, name) for name in columns] for record in records])
    if seeds > 1:
        text += f"\nMean over {seeds} seeds ± standard deviation.\n"
    return text


def _cell(record: Mapping[str, Any], name: str) -> str:
    value, deviation = record.get(name), record.get(name + _DEVIATION)
    if not isinstance(value, float):
        return "" if value is None else str(value)
    text = f"{value:.4g}"
    return text if deviation is None else f"{text} ± {deviation:.2g}"
