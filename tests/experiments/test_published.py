"""Published rows: their settings are those of their recipes, and the documents print them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from script_modules import script

from fewshot_blo.commands import main as cli
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.published import changes, config_of, frozen, request_of
from fewshot_blo.experiments.recipes import read_recipe
from fewshot_blo.experiments.request import evaluation_settings
from fewshot_blo.records import shipped
from fewshot_blo.records.published import (
    PUBLISHED,
    PublishedRow,
    digest_of,
    line_of,
    published_row,
    published_rows,
)
from fewshot_blo.records.shipped import released_models

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "results" / "few_shot.md"
ROWS = published_rows()
TRAINED = [row for row in ROWS.values() if row.settings]
PENALTY = ROWS["omniglot-5w1s/penalty-rho10-2000"]


@pytest.fixture(scope="module")
def tables() -> Any:
    return script("result_tables")


@pytest.mark.parametrize("row", TRAINED, ids=lambda row: row.name)
def test_a_recipe_is_as_it_was_measured(row: PublishedRow) -> None:
    found = list(changes(row, ROWS))
    assert not found, "\n".join(found)


def test_each_row_is_whole() -> None:
    for row in ROWS.values():
        assert bool(row.settings) == bool(row.recipe) == bool(row.seeds) == (not row.of)
        assert row.digest == (digest_of(row.settings) if row.settings else "")
        assert row.name.startswith(row.recipe)
        for name in (row.start, row.of):
            assert name in ("", *ROWS, *released_models())
        assert row.difference is None or row.difference.row in ROWS
        assert row.commits
        assert all(re.fullmatch("[0-9a-f]{7}", commit) for commit in row.commits)
        assert row.figures
        assert row.evaluation.get("norm") in (None, *row.figures)
        assert len(row.figures) == 1 or "norm" not in row.evaluation
    for row in {json.dumps(row.evaluation): row for row in ROWS.values()}.values():
        assert evaluation_settings(request_of(row)) == row.evaluation
        if row.cost:
            steps = row.settings["train"]["steps"]
            assert row.cost["steps"] == min(steps, row.max_steps or steps)


def test_a_row_is_read_as_it_is_written() -> None:
    lines = PUBLISHED.read_text(encoding="utf-8").splitlines()
    assert [line_of(row) for row in ROWS.values()] == lines


def test_frozen_settings_build_the_run_again() -> None:
    config = read_recipe(PENALTY.recipe, max_steps=2000)
    assert config_of(PENALTY) == config
    value_function = ROWS["omniglot-5w1s/f2ba-2000"]  # Has an infinite setting.
    assert config_of(value_function) == read_recipe(value_function.recipe, max_steps=2000)
    assert "Infinity" not in line_of(value_function)


@pytest.mark.parametrize(
    ("line", "other", "said"),
    [
        ("rho: 10.0", "rho: 30.0", "strategy.rho was 10.0 when it was measured, and is 30.0 in"),
        ("  prox: 0.5\n", "", "problem.prox was 0.5 when it was measured, and is None in"),
        ("train:\n", "train:\n  ema: 0.5\n", "train.ema was 0.0 when it was measured, and is 0.5"),
        (
            "episodes:\n",
            "start_from: b.yaml\nepisodes:\n",
            "start_from was '' when it was measured",
        ),
        ("rho: 10.0", "no_such: 1", "there is no setting"),
    ],
)
def test_a_changed_recipe_is_found(
    line: str, other: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "omniglot-5w1s" / "penalty-rho10.yaml"
    file.parent.mkdir()
    text = (shipped.RECIPES / f"{PENALTY.recipe}.yaml").read_text(encoding="utf-8")
    assert text.count(line) == 1
    file.write_text(text.replace(line, other), encoding="utf-8")
    monkeypatch.setattr(shipped, "RECIPES", tmp_path)
    (sentence,) = changes(PENALTY, ROWS)
    assert sentence.startswith(f"published row {PENALTY.name}: ")
    assert said in sentence
    assert sentence.endswith("put other settings into a file of their own")


def test_a_changed_default_is_found() -> None:
    """The recipe leaves the setting out, and the row has what its default was."""
    settings = json.loads(json.dumps(PENALTY.settings))
    settings["train"]["clip"] = 5.0
    (sentence,) = changes(replace(PENALTY, settings=settings), ROWS)
    assert "train.clip was 5.0 when it was measured, and is 10.0 in recipe" in sentence
    settings["train"] = {**PENALTY.settings["train"], "no_longer": 1}
    (sentence,) = changes(replace(PENALTY, settings=settings), ROWS)
    assert "there is no setting 'train.no_longer'" in sentence


def without_later(settings: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that there were not yet when a row was measured."""
    return {
        name: without_later(value, measured[name]) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name in measured
    }


def test_settings_that_change_no_step_are_left_out() -> None:
    config = read_recipe(PENALTY.recipe)
    moved = replace(
        config,
        data=config.data.changed(root="elsewhere"),
        device="cpu",
        train=replace(config.train, memory=3.0, loggers=("CSV",)),
    )
    assert frozen(moved) == frozen(config)
    assert without_later(frozen(config), PENALTY.settings) == PENALTY.settings


def test_the_documents_have_the_rows_of_the_file(tables: Any) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert tables.written(text, ROWS) == text, "run python scripts/result_tables.py"
    marked = re.findall(r"<!-- rows: (\S+) -->", text)
    assert sorted(marked) == sorted(tables.TABLES)
    assert {tables.place_of(row) for row in ROWS.values()} == {*marked, "text"}
    for row in ROWS.values():
        assert f"`{row.name}`" in text
        assert f"`{row.digest or row.of}`" in text


def test_no_other_table_reports_a_training(tables: Any) -> None:
    """Figures of trained models are in the tables of the file, and repeated in the first table."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("## Transfer")[0]
    rest = re.sub(r"<!-- rows: .*?<!-- end of rows -->", "", text, flags=re.DOTALL)
    lines = [line for line in rest.splitlines() if line.startswith("|")]
    assert not [line for line in lines if "outer steps" in line]
    known = {
        f"{f.mean:.2f} ± {f.interval:.2f}" for row in ROWS.values() for f in row.figures.values()
    }
    cells = [line.split("|")[2].strip() for line in lines[2:]]
    assert cells
    assert [cell for cell in cells if cell.partition(",")[0] not in known] == []


def test_label_propagation_is_said_to_be_where_it_is() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").partition("\n| data")[0]
    said = re.search(
        r"1 shot, with (\S+) on .* and (\S+) on .* lower .* with (\S+)\. W", text, re.S
    )
    assert said is not None
    for name, norm, other, figure, is_higher in zip(
        ("omniglot-5w1s/label-propagation-2000", "cifarfs-5w1s/label-propagation",
         "cifarfs-5w1s/label-propagation-5shot"),
        ("transductive", "running", "running"),
        ("omniglot-60way/unroll-head", "cifarfs-5w1s/simpleshot", "cifarfs-5w1s/rfs-5shot"),
        said.groups(),
        (True, True, False),
        strict=True,
    ):  # fmt: skip
        mean = ROWS[name].figures[norm].mean
        assert f"{mean:.2f}" == figure
        assert (mean > ROWS[other].figures[norm].mean) == is_higher


def test_tables_are_in_order_and_show_what_is_missing(tables: Any) -> None:
    text = tables.table("omniglot-5w5s", ROWS)
    means = [float(line.split("|")[3].split()[0]) for line in text.splitlines()[2:]]
    assert means == sorted(means, reverse=True)
    assert "| implicit, CG 5 |  | 99.67 ± 0.06 | not paired |" in text


def test_rows_of_one_budget_table_have_one_budget(tables: Any) -> None:
    for group, steps, images in (
        ("strategies", 2000, 360),
        ("heads", 2000, 360),
        ("initializations", 2000, 120),
    ):
        lines = tables.table(f"omniglot-5w1s-budget/{group}", ROWS).splitlines()
        cells = [[cell.strip() for cell in line.split("|")] for line in lines]
        place = cells[0].index("outer steps"), cells[0].index("images a step")
        assert {tuple(row[i] for i in place) for row in cells[2:]} == {(str(steps), str(images))}


def test_names_that_are_no_row() -> None:
    with pytest.raises(ConfigurationError, match="did you mean omniglot-5w1s/protonet-2000"):
        published_row("omniglot-5w1s/protonet-200")
    with pytest.raises(ConfigurationError, match="evaluates omniglot-5w1s-unroll and has no"):
        config_of(ROWS["omniglot-60way/unroll-head-9views"])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1 of .* is no published row"),
        (["[1]"], "line 1 of .* is no published row"),
        ([line_of(PENALTY), "{}"], "line 2 of .* is no published row"),
        ([line_of(PENALTY).replace('"title"', '"heading"')], "is no published row .*heading"),
        ([line_of(PENALTY)] * 2, "line 2 of .* has the name .* of an earlier line"),
    ],
)
def test_damaged_lines(lines: list[str], said: str, tmp_path: Path) -> None:
    file = tmp_path / "published.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=said):
        published_rows(file)


def test_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "--rows"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[: len(ROWS)]] == [*ROWS]
    assert cli.main(["recipes", "recipes/omniglot-5w1s/protonet.yaml", "--rows"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[:2]] == [
        ["omniglot-5w1s/protonet", "c03aac127893"],
        ["omniglot-5w1s/protonet-2000", "c03aac127893"],
    ]
    assert cli.main(["recipes", "glyphs", "--rows"]) == 0
    assert "no figure is published with glyphs" in capsys.readouterr().out
