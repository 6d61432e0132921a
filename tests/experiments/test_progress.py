"""Validations over what training took."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from fewshot_blo.experiments.progress import Validation, draw_validations, over_seeds, validations
from fewshot_blo.objectives import Accuracy

METRIC = Accuracy().quantity
LOG = [
    {"step": 10, "seconds": 5.0, "examples_per_step": 30},
    {"step": 10, "accuracy/validation": 0.5, "seconds": 25.0},
    {"step": 20, "seconds": 31.0, "examples_per_step": 30},
    {"step": 30, "seconds": 36.0, "examples_per_step": 30},
    {"step": 30, "accuracy/validation": 0.7, "seconds": 56.0},
]


def test_time_and_examples_are_those_of_training() -> None:
    first, second = validations(LOG, METRIC)
    assert first == Validation(10, 0.5, 5.0, 300)
    assert second == Validation(30, 0.7, 16.0, 900)  # 5 + 6 + 5 seconds, without 20 + 20.
    bare = [{k: v for k, v in record.items() if k != "examples_per_step"} for record in LOG]
    assert [point.examples for point in validations(bare, METRIC)] == [None, None]


def test_seeds_are_averaged_where_all_were_validated() -> None:
    one = [Validation(10, 0.5, 5.0, 300), Validation(30, 0.7, 16.0, 900)]
    other = [Validation(10, 0.7, 7.0, 300)]
    assert over_seeds([one, other]) == [Validation(10, 0.6, 6.0, 300)]
    assert over_seeds([one, []]) == []


def test_a_picture_of_runs_with_a_log(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    picture = tmp_path / "validation.png"
    assert not draw_validations({"none": [run / "best.pt"]}, picture, METRIC)
    assert not picture.exists()
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in LOG))
    runs = {"one": [run / "best.pt"], "no log": [tmp_path / "best.pt"]}
    assert draw_validations(runs, picture, METRIC)
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
