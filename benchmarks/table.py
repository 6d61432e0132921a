"""The rows as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peers
from contest import OURS

from fewshot_blo.records import tables

SETTINGS = ("network", "method", "adapted", "tasks", "steps", "shot", "precision")
SHORT = {peers.CACHED: "cached", peers.LEARN2LEARN: "l2l", peers.JAX_VMAP: "vmap"}
SHORT[peers.JAX_MAP] = "lax.map"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with one line a row; its columns are explained in ``benchmarks/README.md``.

    A column of a peer that is empty in all rows is left out. No rows make no table.
    """
    if not rows:
        return ""
    lines = [_line(row) for row in rows]
    optional = {f"{what} {_short(name)}" for what in ("x", "MiB") for name in peers.PEERS}
    optional.add("compiling, s")
    kept = [name for name in lines[0] if name not in optional or any(line[name] for line in lines)]
    return tables.markdown(kept, [[line[name] for name in kept] for line in lines])


def _line(row: dict[str, Any]) -> dict[str, str]:
    """Each column's text."""
    found, floor = row["contenders"], row.get("floor", {})
    ours = found.get(OURS, {})
    rival = found.get(peers.HIGHER, found.get(peers.LEARN2LEARN, {}))
    compiling = [found[name] for name in peers.JAX if "compile_seconds" in found.get(name, {})]
    return {
        **{key: str(row["cell"][key]) for key in SETTINGS},
        "ms": _number(ours.get("seconds", {}).get("median"), 1e3),
        "spread": _range(ours.get("seconds"), 1e3),
        "tasks/s": _number(ours.get("tasks_per_second")),
        **{f"x {_short(name)}": _ratio(found.get(name, {})) for name in peers.PEERS},
        "MiB": _number(ours.get("peak_bytes"), 2**-20),
        **{
            f"MiB {_short(name)}": _number(found.get(name, {}).get("peak_bytes"), 2**-20)
            for name in peers.PEERS
        },
        "compiling, s": ", ".join(_number(entry["compile_seconds"]) for entry in compiling),
        "error": _exponent(ours.get("error")),
        "higher's": _exponent(rival.get("error")),
        "x floor": _number(floor.get("distance")),
        "bound": str(floor.get("bound", "")),
        "remarks": "; ".join(row["remarks"]),
    }


def _short(name: str) -> str:
    return SHORT.get(name, name)


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
