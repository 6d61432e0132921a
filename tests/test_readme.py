from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import Quadratic, assert_same

from fewshot_blo.hypergrad import outer_step

ROOT = Path(__file__).resolve().parents[1]


def run_example(document: str, number: int) -> dict[str, Any]:
    """The names that one of a document's Python blocks leaves."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    # A module of its own, for dataclasses look theirs up.
    module = types.ModuleType("readme_example")
    sys.modules[module.__name__] = module
    exec(compile(blocks[number], document, "exec"), module.__dict__)
    return module.__dict__


@pytest.mark.slow
def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run_example("README.md", 0)
    assert re.search(r"^\d\d\.\d\d ± \d\.\d\d % \(", capsys.readouterr().out, re.MULTILINE)


def test_weights_of_noise_learn_to_decay() -> None:
    torch.manual_seed(0)
    decay = run_example("README.md", 1)["solution"].outer["decay"]
    assert decay[2:].mean() > decay[:2].max()  # Two weights of twenty carry the signal.


def test_the_strategy_is_one() -> None:
    """Of a quadratic: its inner steps are those of the formula, and F_u is all of its gradient."""
    strategy = run_example("docs/extending.md", 0)["Alternating"]()
    quadratic = Quadratic.random()
    step, state = outer_step(strategy, quadratic.bilevel(), strategy.init())
    assert_same(step.gradient, {"u": quadratic.r * quadratic.u.detach()})
    assert_same(step.inner, Quadratic.cut(quadratic.descent(5, 0.1)[0]))
    assert state.inner is step.inner
