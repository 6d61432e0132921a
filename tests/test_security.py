"""SECURITY.md names code and tests that exist; YAML files are read as data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fewshot_blo.commands import main as cli
from fewshot_blo.models.card import read_metadata

ROOT = Path(__file__).resolve().parents[1]


def test_named_files_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and ".py" in line]
    assert len(rows) == 9
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)`", row)
        assert [name for name in named if not (ROOT / name).is_file()] == []
        assert any(name.startswith("tests/") for name in named)


@pytest.mark.parametrize("command", ["train", "study", "tune", "compare"])
def test_yaml_makes_no_objects(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, recipe = tmp_path / "mark", tmp_path / "recipe.yaml"
    recipe.write_text(f"data: !!python/object/apply:os.mkdir [{mark}]\n")
    words = [f"--config={recipe}"] if command == "train" else [str(recipe)]
    assert cli.main([command, *words]) != 0
    assert "could not determine a constructor" in capsys.readouterr().err
    assert not mark.exists()


def test_a_models_card_makes_no_objects(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    card = f"---\nlicense: !!python/object/apply:os.mkdir [{mark}]\n---\n"
    assert read_metadata(card) == {}
    assert not mark.exists()
