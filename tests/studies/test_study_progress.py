"""The figure of the convergence of a study's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fewshot_blo.studies import progress
from fewshot_blo.studies.progress import GRADIENTS, PRODUCTS, draw_progress


def drawn(
    monkeypatch: pytest.MonkeyPatch, path: Path, values: list[float], steps: list[int]
) -> Figure:
    kept: list[Figure] = []
    monkeypatch.setattr(progress, "save_figure", lambda figure, _: kept.append(figure))
    log = [
        {
            "step": step,
            "loss/outer": 1.0,
            "certificate/inner_residual": 2.0,
            "test error %": value,
            "seconds": step / 100,
        }
        for step, value in zip(steps, values, strict=True)
    ]
    records: list[dict[str, Any]] = [{"method": "own", GRADIENTS: 2.0, PRODUCTS: 1.0}]
    draw_progress(records, {"own": log}, path / "progress.png", seconds="CPU seconds")
    kept[0].canvas.draw()
    return kept[0]


def labels(axis: Any) -> list[str]:
    """Of the ticks within the axis."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    inside = [tick for tick in ticks if low <= tick.get_loc() <= high]
    return [tick.label1.get_text() for tick in inside if tick.label1.get_text()]


def test_the_observed_figure_is_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = drawn(monkeypatch, tmp_path, [20.0, 15.0, 14.0], [500, 2000, 12800])
    left = figure.axes[0]
    assert left.get_ylabel() == "test error (%)"
    assert left.lines[0].get_xdata().tolist() == [1500, 6000, 38400]  # type: ignore[union-attr]
    assert figure.axes[1].get_xlabel() == "CPU seconds"


def test_labels_of_short_axes_do_not_overlap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figure = drawn(monkeypatch, tmp_path, [20.0, 15.0, 14.0], [500, 2000, 12800])
    left = figure.axes[0]
    assert labels(left.xaxis) == ["2000", "5000", "10000", "20000"]
    assert left.get_yscale() == "linear"  # Within a decade.


def test_long_axes_are_labelled_by_decades(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = drawn(monkeypatch, tmp_path, [1.0, 1e-5, 1e-10], [1, 100, 100000])
    left = figure.axes[0]
    assert left.get_yscale() == "log"
    assert all(text.startswith("$") for text in labels(left.yaxis))
    assert 2 <= len(labels(left.yaxis)) <= 12
