"""The page on models: its blocks run one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from documents import blocks

PAGE = "docs/guides/models.md"


def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors", reason="needs safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks(PAGE)):
        exec(compile(block, f"{PAGE}, block {number}", "exec"), names)
    assert names["probabilities"].shape == (75, 5)
    assert names["accuracy"].mean > 0.8
    assert (tmp_path / "saved" / "unroll" / "model.safetensors").is_file()
    assert names["same"].name == "omniglot-5w1s-unroll"
