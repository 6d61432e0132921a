"""Plots the convergence of a study's rows over Hessian-vector products and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewshot_blo.records.curves import Curve, Panel, curve_figure
from fewshot_blo.records.figure import save_figure

GRADIENTS, PRODUCTS = "gradients a step", "Hessian products a step"
_OF_EVERY_RECORD = ("step", "seconds")
_PARTS_OF_RECORDS = ("loss/", "hypergradient/", "certificate/")


def draw_progress(
    records: Sequence[Mapping[str, Any]],
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
    *,
    seconds: str = "time (s)",
) -> None:
    """Draws the study's observed figure, or the outer loss, over passes and seconds.

    A pass is a gradient of a loss, or a product with second derivatives of G. A row whose passes
    were not counted is drawn over seconds alone.

    Args:
        records: lines of the table, with the number of gradients and products per outer step.
        logs: log records of each row.
        path: file of the figure.
        seconds: label of the axis of seconds.
    """
    passes = {
        record["method"]: record.get(GRADIENTS, 0.0) + record.get(PRODUCTS, 0.0)
        for record in records
    }
    followed = "loss/outer"
    by_passes, by_seconds = {}, {}
    for name, log in logs.items():
        own = (key for record in log for key in record if _observed(key))
        followed = next(own, followed)
        values = [record[followed] for record in log]
        counted = log if passes[name] else []
        steps = [passes[name] * record["step"] for record in counted]
        by_passes[name] = Curve(steps, values[: len(steps)])
        by_seconds[name] = Curve([record["seconds"] for record in log], values)
    title = "outer loss" if followed == "loss/outer" else _with_unit(followed)
    scale = _scale([y for curve in by_seconds.values() for y in curve.ys])
    label = "passes: gradients and Hessian products (count)"
    sides = [
        _panel(by_passes, label, title, "by passes", scale),
        _panel(by_seconds, seconds, title, "by time", scale),
    ]
    save_figure(curve_figure(f"Convergence of each row: {title}", sides), path)


def _panel(curves: Mapping[str, Curve], xlabel: str, ylabel: str, title: str, yscale: str) -> Panel:
    has_points = any(len(curve.xs) for curve in curves.values())
    return Panel(curves, xlabel, ylabel, title, "log" if has_points else "linear", yscale)


def _scale(values: Sequence[float]) -> str:
    """Within a decade, a linear axis has readable ticks."""
    return "log" if values and 0 < 10 * min(values) < max(values) else "linear"


def _with_unit(name: str) -> str:
    """A label of an axis from the name of a table's column: ``test error (%)``."""
    quantity, percent, _ = name.rpartition("%")
    return f"{quantity.rstrip(' ,')} (%)" if percent else name


def _observed(key: str) -> bool:
    """Whether a figure of a record is one that the study observes."""
    return key not in _OF_EVERY_RECORD and not key.startswith(_PARTS_OF_RECORDS)
