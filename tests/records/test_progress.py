"""Bars where a person watches, lines where a file is written, nothing where none is wanted."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fewshot_blo.records import progress
from fewshot_blo.records.progress import Progress

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def loop(clock: Clock, steps: int, seconds: float, *, shown: bool = True) -> None:
    """So many steps of so many seconds."""
    with Progress("training", steps, "step", shown=shown) as bar:
        for step in range(steps):
            clock.now += seconds
            if step % 10 == 9:
                bar.figures(f"loss {10 / (step + 1):.2f}")
            bar.advance()


def test_lines_in_a_pipe_say_how_far_it_is(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    loop(clock, 6000, 1 / 16)
    lines = capsys.readouterr().err.splitlines()
    # 375 s: one each 30 s, and one at each tenth that is not within 5 s of another.
    assert 12 <= len(lines) <= 22
    assert lines[0] == "training: step 480 of 6000, loss 0.02, 16 steps/s, 6 min left"
    assert lines[-1] == "training: step 6000 of 6000, loss 0.00, 16 steps/s, 6 min in all"
    assert any(line.startswith("training: step 600 of 6000") for line in lines)


def test_slow_steps_have_seconds_a_step(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    loop(clock, 4, 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: step 1 of 4, 40 s a step, 2 min left"
    assert len(lines) == 4


def test_a_short_loop_has_no_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    loop(clock, 100, 0.04)
    assert capsys.readouterr() == ("", "")


def test_a_long_loop_has_fewer_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    loop(clock, 36_000, 1.0)  # Ten hours, of which 30 s are 1/1200.
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 120
    assert lines[19] == "training: step 600 of 36000, loss 0.02, 1 steps/s, 9 h 50 min left"


def test_a_loop_that_stops_early_says_where(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("solving", 1000, "step", start=400) as bar:
        for _ in range(50):
            clock.now += 0.2
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    # The speed is that of this run's own steps.
    assert lines[-1] == "solving: step 450 of 1000, 5 steps/s, 2 min left"


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_silence(
    make: Callable[[], io.StringIO],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = make()
    monkeypatch.setattr(sys, "stderr", stream)
    loop(clock, 100, 10.0, shown=False)
    with Progress("training", 1, "step", shown=False) as bar:
        bar.say("validation")
    assert (capsys.readouterr().out, stream.getvalue()) == ("", "")


def test_a_terminal_has_a_bar_and_no_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("training", 20, "step", start=5) as bar:
        bar.figures("loss 1.23")
        for _ in range(15):
            clock.now += 10
            bar.advance()
        bar.say("step 20: validation 50 %")
    written = terminal.getvalue()
    assert "training: 100%" in written
    assert "20/20" in written
    assert "loss 1.23" in written
    assert "of 20" not in written
    assert capsys.readouterr().out == "step 20: validation 50 %\n"


_NOTEBOOK = """
import sys, types, warnings
warnings.simplefilter("error")
shell = types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = lambda: shell
sys.modules["ipywidgets"] = None  # Not installed.
from fewshot_blo.records.progress import Progress
with Progress("training", 3, "step") as bar:
    for _ in range(3):
        bar.advance()
    bar.say("validated")
"""


@pytest.mark.parametrize("filters", ["error", "default"])
def test_a_notebook_without_ipywidgets_has_a_bar_and_no_warning(filters: str) -> None:
    program = _NOTEBOOK.replace('"error"', f'"{filters}"')
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert result.stdout == "validated\n"
    assert "training: 100%" in result.stderr
    assert "3/3" in result.stderr
    assert "Warning" not in result.stderr


def test_every_loop_of_the_package_uses_it() -> None:
    for folder in ("fewshot_blo", "tasks"):
        for path in ROOT.glob(f"{folder}/**/*.py"):
            if path != Path(progress.__file__):
                assert "tqdm" not in path.read_text(encoding="utf-8"), path
