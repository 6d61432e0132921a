"""What long work says of itself, on a terminal and elsewhere."""

from __future__ import annotations

import sys

import pytest

from fewshot_blo.records import progress
from fewshot_blo.records.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the clock shows."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_lines_at_intervals_where_there_is_no_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(100, "training", "step", start=10) as shown:
        for _ in range(70):
            clock[0] += 1.0
            shown.add(1, f"loss {clock[0]:.0f}")
        shown.tell("step 80: validation 50 %")
    found = capsys.readouterr()
    assert found.err.splitlines() == [
        "training: step 40 of 100, loss 30, 1 steps/s, 1 min left",
        "training: step 70 of 100, loss 60, 1 steps/s, 30 s left",
    ]
    assert found.out == "step 80: validation 50 %\n"


@pytest.mark.parametrize("interactive", [False, True])
def test_nothing_is_shown_unless_wanted(
    interactive: bool,
    clock: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_is_interactive", lambda: interactive)
    with Progress(100, "training", "step", show=False) as shown:
        clock[0] += 1000.0
        shown.add(50)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(4, "training", "step", start=1) as shown:
        shown.add(2, "loss 1.5")
        shown.tell("a line")
        shown.add(1)
    found = capsys.readouterr()
    assert "training: 100%" in found.err
    assert "4/4" in found.err
    assert "loss 1.5" in found.err
    assert found.out == "a line\n"


def test_slow_work_says_seconds_for_each(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(100, "evaluating", "task") as shown:
        clock[0] += 200.0
        shown.add(2)
    assert capsys.readouterr().err == "evaluating: task 2 of 100, 100 s/task, 2.7 h left\n"
