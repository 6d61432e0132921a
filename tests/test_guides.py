"""Blocks of guides that need no data, run as they stand."""

from __future__ import annotations

import pytest
import torch
from documents import run_block


def test_examples_of_another_library(capsys: pytest.CaptureFixture[str]) -> None:
    splits = run_block("docs/guides/data.md", 0)["splits"]
    assert [len(part.class_names) for _, part in splits] == [2, 1, 1]
    assert capsys.readouterr().out.strip() == str(splits)


def test_heads_that_start_at_priors() -> None:
    names = run_block("docs/guides/transductive.md", 0)
    for problem in (names["ridge"], names["linear"]):
        assert torch.equal(problem.head.priors, names["priors"])
