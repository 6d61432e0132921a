"""Rows of a study that processes share give the table of one process."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from fewshot_blo.commands import main as cli
from fewshot_blo.records.locks import writing

INNER = {"steps": 3, "rule": {"name": "SGD", "step_size": 0.3}}
ROW: dict[str, Any] = {"strategy": {"inner": INNER}, "steps": 4, "every": 2}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    penalty = {**ROW, "strategy": {"name": "Penalty", "inner": INNER, "rho": 0.01}}
    path = tmp_path / "study.yaml"
    path.write_text(
        yaml.safe_dump({"study": "synthetic", "rows": {"descent": ROW, "penalty": penalty}})
    )
    return path


def study(recipe: Path, place: Path, *words: str) -> int:
    return cli.main(["study", str(recipe), f"--folder={place}", *words])


def table(place: Path) -> list[dict[str, str]]:
    """The lines of the table without what depends on the machine."""
    with (place / "table.csv").open(encoding="utf-8") as file:
        timed = ("seconds", "seconds sd")
        return [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(file)]


def files(place: Path) -> set[str]:
    found = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    return {name for name in found if "tfevents" not in name}


@pytest.mark.slow
def test_rows_by_shards_and_by_jobs_are_those_of_one_process(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert study(recipe, tmp_path / "whole") == 0
    assert study(recipe, tmp_path / "jobs", "--jobs=2") == 0
    for number, rows in ((1, "2 rows"), (2, "1 row")):
        capsys.readouterr()
        assert study(recipe, tmp_path / "shards", f"--shard={number}/2") == 0
        said = capsys.readouterr().out.splitlines()[-1]
        assert said.startswith(f"part {number}/2 is done, {rows}; when all 2 are, the same command")
    assert not (tmp_path / "shards" / "table.md").exists()
    monkeypatch.setattr("fewshot_blo.studies.rows.solve", None)  # Nothing is solved again.
    assert study(recipe, tmp_path / "shards") == 0
    for name in ("jobs", "shards"):
        assert table(tmp_path / name) == table(tmp_path / "whole")
        assert files(tmp_path / name) == files(tmp_path / "whole")


def test_a_row_in_use_is_left_to_its_process(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "rows"
    with writing(place / "descent" / "seed0"):
        assert study(recipe, place, "--shard=1/3") == 0
        assert study(recipe, place, "--shard=2/3") == 1
        assert f"{place / 'descent' / 'seed0'} is in use" in capsys.readouterr().err
        assert study(recipe, place, "--shard=3/3") == 0
