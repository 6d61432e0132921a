"""Released models repeat their card's figures and hold nothing of the machine that made them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from small_runs import make_folder, write_recipe

from fewshot_blo.commands import main as cli
from fewshot_blo.models.card import read_metadata, without_metadata
from fewshot_blo.training.checkpoint import load

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "release.py"
TASKS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("private") / "data")


def released(recipe: Path, runs: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    words = ["compare", str(recipe), f"--folder={runs}", f"--tasks={TASKS}", "--norm=transductive"]
    assert cli.main(words) == 0
    run, evaluation = runs / recipe.stem / "seed0", runs / "evaluation.json"
    arguments = [str(run), "small", f"--recipe={recipe}", f"--evaluation={evaluation}"]
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *arguments, f"--folder={place}"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return place / "small"


def test_a_card_and_its_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "method.yaml", data)
    found = released(recipe, tmp_path / "runs", tmp_path / "released", monkeypatch)
    card = (found / "card.md").read_text()
    text = without_metadata(card)
    assert text.startswith("# small\n\nA small run. Source: Nobody et al.\n")
    for row in (
        "data set",
        "split",
        "backbone",
        "training tasks",
        "test tasks",
        "limits",
        "licence",
    ):
        assert f"\n| {row} | " in text
    assert read_metadata(card)["model-index"][0]["name"] == "small"
    stated = re.search(r"\| transductive \| (\d+\.\d\d ± \d+\.\d\d) \|", card)
    assert stated is not None
    assert "- method: commit `" in card
    assert "2 steps" in card
    for file in found.iterdir():
        assert str(data).encode() not in file.read_bytes()
    capsys.readouterr()
    words = ["evaluate", str(found / "best.pt"), f"--root={data}", f"--tasks={TASKS}"]
    assert cli.main([*words, "--norm=transductive"]) == 0
    assert f"{stated[1]} %" in capsys.readouterr().out


@pytest.mark.slow
def test_every_run_behind_a_model_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_recipe(tmp_path / "first.yaml", data)
    second = write_recipe(tmp_path / "second.yaml", data, start_from="first.yaml")
    runs = tmp_path / "runs"
    assert cli.main(["compare", str(first), f"--folder={runs}", f"--tasks={TASKS}"]) == 0
    found = released(second, runs, tmp_path / "released", monkeypatch)
    card = (found / "card.md").read_text()
    assert card.index("- first: commit `") < card.index("- second: commit `")
    assert load(found / "best.pt").config["start_from"] == ""
