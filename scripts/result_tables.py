"""Writes the tables of published rows into the documents, from ``recipes/published.jsonl``.

    python scripts/result_tables.py

A table stands between the lines ``<!-- rows: NAME -->`` and ``<!-- end of rows -->``, with the rows
whose ``table`` has that name, the best first. Rows of unlike budgets stand in tables of their own:
``NAME/GROUP`` has the rows of a group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from fewshot_blo.records.published import Figure, PublishedRow, published_rows

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "docs" / "results" / "few_shot.md",)
_TABLE = re.compile(r"(<!-- rows: (\S+) -->\n).*?(<!-- end of rows -->)", re.DOTALL)

Rows = Mapping[str, PublishedRow]
Cell = Callable[[PublishedRow, Rows], str]
"""From a row, and all rows by name, to the text of a cell."""


def _figure(norm: str) -> Cell:
    return lambda row, rows: _text(row.figures.get(norm))


def _text(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.mean:.2f} ± {figure.interval:.2f}"


def _difference(row: PublishedRow, rows: Rows) -> str:
    if row.difference is not None:
        return f"{row.difference.mean:+.2f} ± {row.difference.interval:.2f}"
    beside = (other.difference for other in rows.values() if other.table == row.table)
    references = {difference.row for difference in beside if difference is not None}
    return "" if row.name in references else "not paired"


def _one_view(row: PublishedRow, rows: Rows) -> str:
    return _text(rows[row.name.removesuffix("-9views")].figures["transductive"])


def _images_a_step(row: PublishedRow) -> int:
    episodes = row.settings["episodes"]
    images: int = episodes["tasks"] * episodes["way"] * (episodes["shot"] + episodes["query"])
    return images


def _images(row: PublishedRow, rows: Rows) -> str:
    return str(_images_a_step(row)) if row.cost else ""


def _cost(name: str, digits: int) -> Cell:
    return lambda row, rows: f"{row.cost[name]:.{digits}f}" if name in row.cost else ""


def _known_by(row: PublishedRow, rows: Rows) -> str:
    """Its name, the digest of its settings or what it evaluates, and its commits."""
    return ", ".join(f"`{word}`" for word in (row.name, row.digest or row.of, *row.commits))


def _budget(row: PublishedRow) -> str:
    """Rows of one group have the same steps, images and start; strategies also the same tasks."""
    settings, steps = row.settings, row.cost.get("steps")
    budget = steps, _images_a_step(row), row.start
    if budget == (2000, 120, ""):
        return "initializations"
    if budget != (2000, 360, ""):
        return "others"
    tasks = settings["episodes"]["tasks"], settings["episodes"]["way"]
    is_linear = settings["problem"]["head"]["name"] == "Linear"
    return "strategies" if is_linear and tasks == (3, 20) else "heads"


def _start(row: PublishedRow) -> str:
    """Whether the encoder was trained as a classifier, or in episodes from random weights."""
    episodic = row.settings and row.settings["problem"]["name"] != "Pretraining"
    return "episodes" if episodic and not row.start else "classifier"


_GROUPS: Mapping[str, Callable[[PublishedRow], str]] = {
    "omniglot-5w1s-budget": _budget,
    "cifarfs-5w1s": _start,
}

_TRAINED: dict[str, Cell] = {
    "outer steps": _cost("steps", 0),
    "images a step": _images,
    "minutes": _cost("minutes", 1),
    "tasks/s": _cost("tasks_per_second", 1),
    "peak GiB": _cost("peak_gib", 2),
    "row, settings, commit": _known_by,
}
_EVALUATED: dict[str, Cell] = {"row, evaluated, commit": _known_by}
_METHOD: dict[str, Cell] = {"method": lambda row, rows: row.title}
_ALL = {norm: _figure(norm) for norm in ("transductive", "support", "running")}
_TWO = {norm: _figure(norm) for norm in ("transductive", "running")}
_PAIRED: dict[str, Cell] = {"minus ProtoNet, paired": _difference}
_OF_SHAPE = _METHOD | _TWO | _PAIRED | _EVALUATED

TABLES: Mapping[str, tuple[str, Mapping[str, Cell]]] = {
    "omniglot-5w1s": ("transductive", _METHOD | _ALL | _PAIRED | _TRAINED),
    "omniglot-5w1s-views": (
        "transductive",
        _METHOD | _TWO | {"one view, transductive": _one_view} | _PAIRED | _EVALUATED,
    ),
    **{
        f"omniglot-5w1s-budget/{group}": ("transductive", _METHOD | _ALL | _TRAINED)
        for group in ("strategies", "heads", "initializations", "others")
    },
    "omniglot-5w5s": ("running", _OF_SHAPE),
    "omniglot-20w1s": ("running", _OF_SHAPE),
    "omniglot-20w5s": ("running", _OF_SHAPE),
    **{
        f"cifarfs-5w1s/{group}": ("running", _METHOD | _ALL | _PAIRED | _TRAINED)
        for group in ("classifier", "episodes")
    },
    "cifarfs-5w5s": ("running", _OF_SHAPE),
}
"""Of each table, the norm mode that orders it, and its columns."""


def place_of(row: PublishedRow) -> str:
    """The name of the table that a row stands in."""
    group = _GROUPS.get(row.table)
    return row.table if group is None else f"{row.table}/{group(row)}"


def table(name: str, rows: Rows) -> str:
    """A table in Markdown.

    Args:
        name: its name in ``TABLES``.
        rows: all published rows by name.
    """
    norm, columns = TABLES[name]
    found = [row for row in rows.values() if place_of(row) == name]
    found.sort(key=lambda row: row.figures[norm].mean, reverse=True)
    lines = [[cell(row, rows) for cell in columns.values()] for row in found]
    head, *body = (f"| {' | '.join(cells)} |" for cells in [[*columns], *lines])
    return "\n".join([head, "|---" * len(columns) + "|", *body, ""])


def written(text: str, rows: Rows) -> str:
    """A document with its tables of rows made anew."""
    return _TABLE.sub(lambda found: found[1] + table(found[2], rows) + found[3], text)


def main() -> None:
    """Writes the tables into the documents."""
    rows = published_rows()
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        document.write_text(written(text, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
