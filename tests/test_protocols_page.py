"""The page on protocols: its blocks run, and its protocol is one file that keeps all promises."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documents import blocks
from small_runs import make_dataset

from fewshot_blo.experiments.data import build_sampler
from fewshot_blo.experiments.settings import SLOTS, Config, EpisodeSettings, Protocol
from fewshot_blo.tasks import ClassDataset, ClassSampler, Splits, glyphs
from fewshot_blo.tasks.protocols import PROTOCOLS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "protocols.md"


def test_a_protocol_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long_tail.py").write_text(blocks("docs/guides/protocols.md")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = importlib.import_module("long_tail").LongTail
    labels = torch.arange(6).repeat_interleave(30)
    images = torch.arange(180).to(torch.uint8).reshape(180, 1, 1, 1)
    dataset = ClassDataset(images, labels, tuple("abcdef"))
    batch = ClassSampler(dataset, own(), tasks=3).batch(0)
    assert [torch.bincount(y).tolist() for y in batch.support_y] == [[8, 4, 2, 1, 1]] * 3
    assert np.unique(batch.classes[0]).size == 5
    episodes = EpisodeSettings(protocol=Protocol(own), shot=4, query=3, tasks=2)
    drawn = build_sampler(Config(episodes=episodes, device="cpu"), dataset, training=True)
    assert drawn.describe() == "5-way 4-shot long tail, 3 queries a class"


def test_the_other_blocks_run(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Drawing the letters takes longer than all else; the README's test does.
    sizes = enumerate((12, 10, 10))
    splits = Splits(*(make_dataset(classes, 40, seed=seed) for seed, classes in sizes))
    monkeypatch.setattr(glyphs, "load", lambda: splits)
    names: dict[str, Any] = {}
    for block in blocks("docs/guides/protocols.md")[1:]:
        exec(compile(block.replace("tasks=20", "tasks=2"), str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "| average rank |" in said
    assert "AUROC" in said


def test_every_protocol_is_on_the_page() -> None:
    text = PAGE.read_text()
    for kind in PROTOCOLS:
        assert f"| `{kind.__name__}` |" in text
    assert SLOTS[Protocol].names == [kind.__name__ for kind in PROTOCOLS]
