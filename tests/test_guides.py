"""Blocks of pages that need no data, run as they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from documents import ROOT, run_block


def test_examples_of_another_library(capsys: pytest.CaptureFixture[str]) -> None:
    splits = run_block("docs/guides/data.md", 0)["splits"]
    assert [len(part.class_names) for _, part in splits] == [2, 1, 1]
    assert capsys.readouterr().out.strip() == str(splits)


def test_heads_that_start_at_priors() -> None:
    names = run_block("docs/guides/transductive.md", 0)
    for problem in (names["ridge"], names["linear"]):
        assert torch.equal(problem.head.priors, names["priors"])


@pytest.fixture
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("default_dtype")
def test_the_weight_decay_is_the_best_and_the_page_prints_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = run_block("docs/start/bilevel.md", 0)
    x, y = names["x"], names["y"]

    def held_out(decay: float) -> float:
        matrix = x[:30].T @ x[:30] / 30 + decay * torch.eye(20)
        w = torch.linalg.solve(matrix, x[:30].T @ y[:30] / 30)
        return float((x[30:] @ w - y[30:]).square().mean())

    decays = torch.logspace(-3, 2, 2001).tolist()
    best = min(decays, key=held_out)
    assert float(names["solution"].outer["decay"].exp()) == pytest.approx(best, rel=0.01)
    page = (ROOT / "docs" / "start" / "bilevel.md").read_text(encoding="utf-8")
    printed = f"```text\n{capsys.readouterr().out}```"
    assert re.sub(r"step \d+", "", printed) in re.sub(r"step \d+", "", page)
