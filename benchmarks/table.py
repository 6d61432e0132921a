"""The rows as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peers

HEADER = (
    *("network", "method", "adapted", "tasks", "steps", "shot", "precision"),
    *("ms", "spread", "tasks/s", "x higher", "x cached", "x learn2learn"),
    *("MiB", "MiB higher", "MiB l2l", "error", "higher's", "x floor", "bound", "remarks"),
)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with one line a row; its columns are explained in ``benchmarks/README.md``."""
    lines = [HEADER, *(_line(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    text = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text) + "\n"


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    cell, found = row["cell"], row["contenders"]
    ours = found.get("ours", {})
    higher, learn2learn = found.get(peers.HIGHER, {}), found.get(peers.LEARN2LEARN, {})
    floor = row.get("floor", {})
    return (
        *(str(cell[key]) for key in ("network", "method", "adapted", "tasks", "steps", "shot")),
        cell["precision"],
        _number(ours.get("seconds", {}).get("median"), 1e3),
        _range(ours.get("seconds"), 1e3),
        _number(ours.get("tasks_per_second")),
        *(_ratio(found.get(name, {})) for name in (peers.HIGHER, peers.CACHED, peers.LEARN2LEARN)),
        _number(ours.get("peak_bytes"), 2**-20),
        _number(higher.get("peak_bytes"), 2**-20),
        _number(learn2learn.get("peak_bytes"), 2**-20),
        _exponent(ours.get("error")),
        _exponent(higher.get("error", learn2learn.get("error"))),
        _number(floor.get("distance")),
        str(floor.get("bound", "")),
        "; ".join(row["remarks"]),
    )


def _ratio(contender: dict[str, Any]) -> str:
    """``as users run it (with our allocator setting)``, medians of the ratios pair by pair."""
    ratios = contender.get("times_faster", {})
    if "as run" not in ratios:
        return ""
    same = ratios.get("same allocator")
    text = f"{_number(ratios['as run']['median'])} [{_range(ratios['as run'])}]"
    return text if same is None else f"{text}, {_number(same['median'])} [{_range(same)}]"


def _range(spread: dict[str, float] | None, scale: float = 1.0) -> str:
    if spread is None:
        return ""
    return f"{_number(spread['low'], scale)}-{_number(spread['high'], scale)}"


def _number(value: float | None, scale: float = 1.0) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return ""
    scaled = value * scale
    return f"{scaled:.0f}" if scaled >= 100 else f"{scaled:#.3g}"


def _exponent(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"
