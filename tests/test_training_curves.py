"""``scripts/training_curves.py``: the validations of long runs, kept and drawn."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from script_modules import script

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.training import checkpoint as checkpoints

MODEL = Path(__file__).resolve().parents[1] / "checkpoints/released/omniglot-5w1s-maml/best.pt"


def test_validations_of_a_run_are_kept_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves, run, kept = script("training_curves"), tmp_path / "run", tmp_path / "kept"
    run.mkdir()
    shutil.copy(MODEL, run / "best.pt")
    step = {"step": 10, "loss/outer": 0.1, "seconds": 1.0}
    done = {"step": 10, "accuracy/validation": 0.5, "accuracy/validation_interval": 0.01}
    later = {"step": 20, "accuracy/validation": 0.75, "accuracy/validation_interval": 0.02}
    records = (step, done, later)
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    curves.main([str(run), "omniglot-5w1s/maml-long", "--folder", str(kept)])
    lines = (kept / "omniglot-5w1s" / "maml-long.csv").read_text().splitlines()
    images = 8 * 5 * (1 + 5)  # Tasks, classes, support and query images of a step.
    assert lines[1:] == [f"10,{10 * images},50.000,1.000", f"20,{20 * images},75.000,2.000"]
    picture = kept / "omniglot-5w1s.png"
    picture.unlink()
    curves.main(["--folder", str(kept)])
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
    with pytest.raises(SystemExit):
        curves.main([str(run)])
    assert curves.main([str(tmp_path / "missing"), "a/b", "--folder", str(kept)]) == 2
    assert "training_curves.py: " in capsys.readouterr().err
    (run / "log.jsonl").write_text(json.dumps(step))
    assert curves.main([str(run), "a/b", "--folder", str(kept)]) == 2
    assert "has no validation in its log.jsonl" in capsys.readouterr().err
    assert not (kept / "a").exists()


def test_examples_of_tasks_of_changing_size(tmp_path: Path) -> None:
    """They are counted from the log; a log without them and a range in the settings is refused."""
    curves, run = script("training_curves"), tmp_path / "run"
    run.mkdir()
    state = checkpoints.load(MODEL)
    episodes = {**state.config["episodes"], "way": [5, 10]}
    config = {**state.config, "episodes": episodes}
    checkpoints.save(replace(state, config=config), run / "best.pt")
    half = {"accuracy/validation_interval": 0.0}
    records: list[dict[str, float]] = [
        {"step": 10, "examples_per_step": 6, "seconds": 1.0},
        {"step": 10, "accuracy/validation": 0.5, **half},
        {"step": 20, "examples_per_step": 2, "seconds": 2.0},
        {"step": 20, "accuracy/validation": 0.75, **half},
    ]
    log = run / "log.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    written = curves.keep(run, "group/one", tmp_path).read_text().splitlines()
    assert written[1:] == ["10,60,50.000,0.000", "20,80,75.000,0.000"]
    for record in records:
        record.pop("examples_per_step", None)
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ConfigurationError, match="has no examples_per_step, and the settings"):
        curves.keep(run, "group/two", tmp_path)
    assert not (tmp_path / "group" / "two.csv").exists()
