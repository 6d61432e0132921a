"""From a recipe of a study to its table."""

from __future__ import annotations

import csv
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.commands import main as cli
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.components import plain
from fewshot_blo.experiments.plan import Plan
from fewshot_blo.experiments.settings import SLOTS
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies import STUDIES, Figures, RowSettings, Study, read_study, run_study
from fewshot_blo.studies.study import AS_FOUND, RETRAINED

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes" / "studies").glob("*.yaml"))
INNER = {"steps": 3, "rule": {"name": "SGD", "step_size": 0.3}}
SETTINGS: dict[str, Any] = {"strategy": {"inner": INNER}, "steps": 6, "every": 2}


@dataclass(frozen=True)
class Halves(Study):
    """v* = u, and F is least at one half."""

    target: float = 0.5

    def problem(self) -> PlainProblem:
        return PlainProblem(
            {"u": torch.full((2,), float(self.seed))},
            {"v": torch.ones(2)},
            lambda v, u: (v["v"] - u["u"]).square().sum(),
            lambda v, u: (v["v"] - self.target).square().sum(),
        )

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        distance = float((outer["u"] - self.target).abs().max())
        return {AS_FOUND: {"distance": distance}, RETRAINED: {"distance": distance + 1}}

    def baselines(self) -> Mapping[str, Figures]:
        return {"nothing": {"distance": abs(self.seed - self.target)}}

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        path.write_text(" ".join(solutions))


@pytest.fixture(autouse=True)
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES, "halves", Halves)


def write_recipe(path: Path, **changes: Any) -> Path:
    penalty = {**SETTINGS, "strategy": {"name": "Penalty", "inner": INNER, "rho": 0.01}}
    rows = {"descent": SETTINGS, "penalty": penalty}
    path.write_text(yaml.safe_dump({"study": "halves", "rows": rows, **changes}))
    return path


@pytest.mark.slow
def test_from_a_recipe_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "r.yaml")
    words = ["study", str(recipe), f"--folder={tmp_path / 'f'}", "--seeds", "0", "1"]
    assert cli.main(words) == 0
    with (tmp_path / "f" / "table.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == [
        "nothing",
        "descent",
        "descent + retrain",
        "penalty",
        "penalty + retrain",
    ]
    assert float(rows["nothing"]["distance"]) == 0.5
    found, again = (float(rows[name]["distance"]) for name in ("descent", "descent + retrain"))
    assert 0 < found < 0.5
    assert again == pytest.approx(found + 1)
    assert float(rows["descent"]["outer steps"]) == 6
    assert float(rows["descent"]["seconds"]) > 0
    table = (tmp_path / "f" / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert [cell.strip() for cell in table.splitlines()[2].split("|")[1:3]] == [
        "nothing",
        "0.5 ± 0",
    ]
    assert (tmp_path / "f" / "picture.png").read_text() == "descent penalty"


def test_a_budget_of_passes_gives_the_number_of_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step of the first row takes 4 gradients and 3 products, as its line says."""
    rows = {
        "descent": {**SETTINGS, "passes": 30},
        "implicit": {**SETTINGS, "passes": 30, "strategy": {"name": "Implicit", "inner": INNER}},
    }
    recipe = write_recipe(tmp_path / "r.yaml", rows=rows)
    assert cli.main(["study", str(recipe), f"--folder={tmp_path / 'f'}"]) == 0
    with (tmp_path / "f" / "table.csv").open(encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["outer steps"]]
    assert len(found) == 2
    for row in found:
        one = float(row["gradients a step"]) + float(row["Hessian products a step"])
        assert float(row["outer steps"]) == 30 // one
    recipe = write_recipe(tmp_path / "s.yaml", rows={"few": {**SETTINGS, "passes": 6}})
    capsys.readouterr()
    assert cli.main(["study", str(recipe), f"--folder={tmp_path / 'g'}"]) != 0
    assert "passes is 6, and one outer step takes 7: name more" in capsys.readouterr().err


def test_without_progress_nothing_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_study(Halves(), {"descent": RowSettings(steps=3)}, tmp_path, progress=False)
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "table.md").exists()


def test_what_is_solved_is_not_solved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"descent": RowSettings(steps=3)}
    before = run_study(Halves(), rows, tmp_path)
    monkeypatch.setattr("fewshot_blo.studies.rows.solve", None)
    assert run_study(Halves(), rows, tmp_path) == before
    with pytest.raises(ConfigurationError, match="of other settings"):
        run_study(Halves(), {"descent": RowSettings(steps=4)}, tmp_path)
    with pytest.raises(ConfigurationError, match="of other settings"):
        run_study(Halves(target=0.1), rows, tmp_path)


def test_goes_on_after_an_interrupt(tmp_path: Path) -> None:
    signals = [signal.SIGINT]

    @dataclass(frozen=True)
    class Interrupting(Halves):
        def problem(self) -> PlainProblem:
            def batches(step: int) -> float:
                if step == 3 and signals:
                    os.kill(os.getpid(), signals.pop())
                return 1.0

            plain = super().problem()
            loss: Callable[..., Tensor] = plain.outer_loss
            return PlainProblem(
                plain.outer,
                plain.inner,
                plain.inner_loss,
                lambda v, u, batch: batch * loss(v, u),
                outer_batches=batches,
            )

    rows = {"row": RowSettings(steps=6)}
    whole = run_study(Halves(), rows, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_study(Interrupting(), rows, tmp_path / "parts")
    parts = run_study(Interrupting(), rows, tmp_path / "parts")
    assert [row["distance"] for row in parts] == [row["distance"] for row in whole]


def test_a_row_that_diverges_leaves_the_others(tmp_path: Path) -> None:
    wild = RowSettings(Unroll(InnerSteps(200, SGD(90.0))), steps=40, every=1)
    records = run_study(Halves(), {"wild": wild, "tame": RowSettings(steps=2)}, tmp_path)
    rows = {record["method"]: record for record in records}
    assert rows["wild"]["diverged after steps"] == 0
    assert rows["tame"]["outer steps"] == 2
    assert run_study(Halves(), {"wild": wild}, tmp_path)[1] == rows["wild"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"study": "quarters"}, "is not a study"),
        ({"settings": {"width": 3}}, r"settings: .*width"),
        ({"rows": {"a": {"steps": "many"}}}, r"row a: .*steps"),
        ({"rows": {"a/b": {}}}, "row 'a/b' must have another name"),
        ({"rows": {"baselines": {}}}, "row 'baselines' must have another name"),
    ],
)
def test_recipes_that_make_no_sense(
    changes: dict[str, Any], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", **changes)
    assert cli.main(["study", str(recipe), f"--folder={tmp_path / 'f'}"]) == 1

    assert re.search(match, capsys.readouterr().err)


def test_rows_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "r.yaml")
    words = ["study", str(recipe), f"--folder={tmp_path / 'f'}", "--only"]
    assert cli.main([*words, "penalty"]) == 0
    assert not (tmp_path / "f" / "descent").exists()
    assert cli.main([*words, "ascent"]) == 1
    assert "there is no row 'ascent'; there are descent, penalty" in capsys.readouterr().err
    assert cli.main(["study", str(tmp_path / "none.yaml")]) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_can_be_built(path: Path) -> None:
    study, rows = read_study(path)
    assert type(study) is STUDIES[yaml.safe_load(path.read_text())["study"]]
    for row in rows.values():
        again = Plan(SLOTS, RowSettings, "", plain(SLOTS, row)).build()
        assert again == row
