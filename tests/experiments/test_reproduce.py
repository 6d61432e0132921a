"""A figure is published from finished runs, and found again with the settings of its row."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from script_modules import script
from small_runs import make_folder, write_recipe

from fewshot_blo.commands import compare
from fewshot_blo.commands import main as cli
from fewshot_blo.records import logs, provenance, published, shipped
from fewshot_blo.records.published import line_of, published_rows
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.run import BEST, PROVENANCE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EVALUATION = "first.json"
NORMS = ["transductive", "support", "running"]
FIRST = "--name small/first-1 --recipe small/first --max_steps 1"
VIEWS = FIRST.replace("-1 ", "-9views ")
NEW = FIRST.replace("-1 ", "-2 ")
SHOTS = "--name small/first-1-2shot --of small/first-1"


class Published:
    """Finished runs of a recipe with two seeds, and of one that starts from it, and their rows."""

    def __init__(self, place: Path, data: Path) -> None:
        self.place, self.data, self.file = place, data, place / "published.jsonl"
        self.file.touch()
        self.script = script("publish")

    def of(self, name: str) -> list[Path]:
        """The folders of the runs of a recipe."""
        return [self.place / "runs" / name / f"seed{seed}" for seed in (0, 2)]

    def publish(self, runs: list[Path], words: str, evaluation: str = EVALUATION) -> int:
        """Runs the script; returns its exit status."""
        table = () if "--table" in words else ("--table", "text")
        given = [*words.split(), "--title", "a method", *table, "--file", str(self.file)]
        file = f"--evaluation={self.place / evaluation}"
        status: int = self.script.main([*map(str, runs), *given, file])
        return status


def table(path: Path) -> list[dict[str, str]]:
    """The lines of a table of figures."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("rows")
    data = make_folder(tmp_path_factory.mktemp("data"))
    recipes = folder / "recipes" / "small"
    recipes.mkdir(parents=True)
    write_recipe(recipes / "first.yaml", data)
    write_recipe(recipes / "second.yaml", data, start_from="first.yaml")
    words = [f"--folder={folder}/runs", "--tasks=8", "--max_steps=1", "--seeds"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "RECIPES", folder / "recipes")
        patch.setattr(published, "PUBLISHED", folder / "published.jsonl")
        patch.setattr(provenance, "_commit", lambda: COMMIT)
        patch.setattr(logs, "draw_curves", lambda *_: None)  # Takes longer than the training.
        found = Published(folder, data)
        first, (second, _) = found.of("first"), found.of("second")
        assert cli.main(["compare", "small/first", *words, "0", "2"]) == 0
        shutil.copy(folder / "runs" / "evaluation.json", folder / EVALUATION)
        shutil.copy(folder / "runs" / "table.csv", folder / "first.csv")
        assert found.publish(first, FIRST) == 0
        assert cli.main(["compare", "small/first", "small/second", *words, "0"]) == 0
        minus = f"--minus small/first-1 --minus_runs {first[0]} --start small/first-1"
        of_second = f"{FIRST.replace('first', 'second')} {minus}"
        assert found.publish([second], of_second, "runs/evaluation.json") == 0
        checkpoints = [str(run / BEST) for run in first]
        words = ["--tasks=8", "--shot=2", "--norm=running", f"--output={folder}/shots.json"]
        assert cli.main(["evaluate", *checkpoints, *words]) == 0
        assert found.publish(first, SHOTS, "shots.json") == 0
        yield found


def test_a_row_has_what_was_measured(place: Published) -> None:
    first, second, shots = published_rows(place.file).values()
    assert first.commits == second.commits == shots.commits == [COMMIT[:7]]
    assert (first.seeds, first.max_steps, first.start) == ([0, 2], 1, "")
    assert (second.start, second.recipe) == ("small/first-1", "small/second")
    assert (shots.of, shots.settings, shots.cost) == ("small/first-1", {}, {})
    assert first.evaluation == {"tasks": 8, "seed": 1000}
    assert shots.evaluation == {"tasks": 8, "shot": 2, "seed": 1000, "norm": "running"}
    assert first.cost["steps"] == 1
    assert "root" not in first.settings["data"]
    (known,) = table(place.place / "first.csv")
    for norm, figure in first.figures.items():
        assert figure.mean == round(float(known[norm]), 2)
        assert figure.interval == round(float(known[f"{norm} interval"]), 2)
        assert figure.sd_over_seeds == round(float(known[f"{norm} sd over seeds"]), 2)
    _, known = table(place.place / "runs" / "table.csv")
    assert second.difference is not None
    assert second.difference.mean == round(float(known["transductive difference"]), 2)
    assert second.difference.interval == round(float(known["transductive difference interval"]), 2)
    assert second.figures["support"].sd_over_seeds is None


@pytest.mark.slow
def test_the_figures_are_found_again(
    place: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the recipe has other settings by now, and the images lie elsewhere."""
    data = shutil.copytree(place.data, tmp_path / "moved")
    recipe = place.place / "recipes" / "small" / "first.yaml"
    text = recipe.read_text()
    changed = yaml.safe_load(text)
    changed["train"]["learning_rate"] = 0.5
    recipe.write_text(yaml.safe_dump(changed))
    rows = published_rows(place.file)
    words = ["compare", "--reproduce", *rows, f"--root={data}", f"--folder={tmp_path}/again"]
    assert cli.main(words) == 0
    recipe.write_text(text)
    printed = capsys.readouterr().out
    records = table(tmp_path / "again" / "table.csv")
    assert [(r["row"], r["norm"]) for r in records] == [
        *((name, norm) for name in ("small/first-1", "small/second-1") for norm in NORMS),
        ("small/first-1-2shot", "running"),
    ]
    for record in records:
        figure = rows[record["row"]].figures[record["norm"]]
        assert float(record["published"]) == figure.mean
        assert float(record["difference"]) == pytest.approx(0, abs=0.005)
        assert float(record["found interval"]) == pytest.approx(figure.interval, abs=0.005)
        spread = figure.sd_over_seeds
        known = f"{figure.mean:.2f} ± {figure.interval:.2f}"
        known += "" if spread is None else f" [{spread:.2f}]"
        (line,) = (
            line
            for line in printed.splitlines()
            if [cell.strip() for cell in line.split("|")[1:3]] == [record["row"], record["norm"]]
        )
        assert line.count(known) == 2
    # With one seed more than those of the row.
    assert cli.main([*words[:2], "small/first-1-2shot", *words[-2:], "--seeds", "2", "5"]) == 0
    assert [record["seeds"] for record in table(tmp_path / "again" / "table.csv")] == ["3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--reproduce small/first-2",
            "no published row 'small/first-2' (did you mean small/first-1",
        ),
        ("--reproduce small/first-1 --tasks 4", "tasks is 4: published rows have an evaluation"),
        # Also the usual value, where the row has another.
        ("--reproduce small/first-1 --tasks=600", "tasks is 600: published rows have an"),
        ("--reproduce small/first-1 --precision bfloat16", "precision is bfloat16: published"),
        ("--reproduce small/first-1 --views shifts", "views is shifts: published rows have"),
        ("--reproduce small/first-1 --max_steps 4", "max_steps is 4, and published rows are"),
        ("--reproduce small/first-1 --shard 1/2", "shard is 1/2, and published rows are"),
        ("x --reproduce small/first-1", "sources is x, and published rows are reproduced with"),
        ("--seeds 1", "there is nothing to compare"),
    ],
)
def test_what_is_not_reproduced(
    words: str, said: str, place: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", *words.split(), f"--folder={tmp_path / 'new'}"]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_settings_of_the_row_may_be_given(place: Published) -> None:
    words = "--tasks 8 --precision float32 --way 3 --seed 1000 --norm=all --steps 2 --chunk 1"
    parsed = compare.OPTIONS.parse(["--reproduce", "small/first-1", *words.split()])
    assert parsed[0].tasks == 8


def test_a_released_model_is_evaluated(
    place: Published,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = tmp_path / "released" / "small-model"
    released.mkdir(parents=True)
    shutil.copy(place.of("first")[0] / BEST, released)
    monkeypatch.setattr(shipped, "RELEASED", tmp_path / "released")
    monkeypatch.setattr(published, "PUBLISHED", tmp_path / "published.jsonl")
    (tmp_path / "published.jsonl").touch()
    evaluation = tmp_path / "evaluation.json"
    words = [str(released / BEST), "--tasks=8", f"--root={place.data}", f"--output={evaluation}"]
    assert cli.main(["evaluate", *words]) == 0
    own = Published(tmp_path, place.data)
    assert own.publish([released / BEST], "--name a --of small-model", "evaluation.json") == 0
    again = ["compare", "--reproduce", "a", f"--root={place.data}", f"--folder={tmp_path}/again"]
    assert cli.main(again) == 0
    found = table(tmp_path / "again" / "table.csv")
    assert {round(abs(float(record["difference"])), 1) for record in found} == {0}
    capsys.readouterr()
    assert cli.main([*again, "--seeds", "1"]) == 1
    assert "small-model, which is not trained again: leave out seeds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (FIRST, "there is a row small/first-1: choose another name"),
        (FIRST.replace("name small", "name other"), "it must begin with that of the recipe"),
        (FIRST.replace("--max_steps 1", "").replace("-1", "-2"), "has train.steps 1, which is 2"),
        (FIRST.replace("first", "second").replace("-1", "-2"), "start_from was '' when it was"),
        (f"{FIRST.replace('-1', '-2')} --start small/first-1", "started from '', and start is"),
        (f"{FIRST.replace('-1 ', '-2 ')} --start nothing", "there is no published row 'nothing'"),
        ("--name a --of nothing", "there is no published row 'nothing'"),
        (
            f"{NEW} --table omniglot",
            "there is no table omniglot (did you mean omniglot-",
        ),
        (
            f"{SHOTS.replace('2shot', '2shots')} --table omniglot-5w1s",
            "norm modes are running, and table omniglot-5w1s is ordered by transductive",
        ),
        (
            f"{VIEWS} --table omniglot-5w1s-views",
            "the column 'one view, transductive'",
        ),
        (f"{NEW} --minus small/first-1-2shot --minus_runs {{}}", "shot None, which is 2 for row"),
        (f"{NEW} --minus small/first-1", "there are no minus_runs: name the runs of this row"),
        (
            f"{NEW} --minus small/first-1 --minus_norm none --minus_runs {{}}",
            "and no none: evaluate",
        ),
        (f"{NEW} --minus small/second-1 --minus_runs {{}}", "started from ''"),
        (f"{NEW} --minus small/first-1 --minus_runs {{}} {{}}", "have one training seed, 0: name"),
        (f"--recipe {__file__} --name a", "it must be one of the package, without folder"),
        (
            f"{SHOTS.replace('2shot', '2shots')} --minus nothing",
            "there is no published row 'nothing'",
        ),
    ],
)
def test_what_is_not_published(
    words: str, said: str, place: Published, capsys: pytest.CaptureFixture[str]
) -> None:
    before = place.file.read_bytes()
    evaluation = "shots.json" if "2shots" in words else EVALUATION
    words = words.replace("{}", str(place.of("first")[0]))
    assert place.publish(place.of("first"), words, evaluation) == 2
    assert said in capsys.readouterr().err
    assert place.file.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read (Expecting"),
        ("[1]", "is no evaluation: name the file that compare or evaluate wrote"),
        ('{"checkpoints": {}}', "does not say how it was measured: evaluate again"),
        ('{"kind": "part", "checkpoints": {}}', "is a part: name the file that fewshot-blo merge"),
    ],
)
def test_files_that_are_no_evaluation(
    text: str, said: str, place: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "e.json").write_text(text)
    assert place.publish(place.of("first"), NEW, str(tmp_path / "e.json")) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_a_run_that_is_missing(place: Published, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.publish([place.place / "missing"], NEW) == 2
    assert "missing: check the path" in capsys.readouterr().err


def test_a_seed_counts_once(place: Published, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = place.of("first")
    assert place.publish([run, run / "."], NEW) == 2
    assert "have one training seed, 0: name each seed once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("second", "started from '{first}', and start is ''"),
        ("seed", "has seed 0, and row small/first-1 has [2]: evaluate its runs"),
        ("model", "has other weights or settings than the released model small-model"),
    ],
)
def test_only_what_is_named_is_evaluated(
    which: str, said: str, place: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With ``--of``, the checkpoint is that of the row or of the released model."""
    run, of = place.of("second" if which == "second" else "first")[0], "small/first-1"
    own = Published(tmp_path, place.data)
    row = replace(published_rows(place.file)[of], seeds=[2] if which == "seed" else [0])
    own.file.write_text(f"{line_of(row)}\n")
    if which == "model":
        (tmp_path / "released" / "small-model").mkdir(parents=True)
        shutil.copy(place.of("first")[1] / BEST, tmp_path / "released" / "small-model")
        monkeypatch.setattr(shipped, "RELEASED", tmp_path / "released")
        of = "small-model"
    evaluation = str(place.place / "runs" / "evaluation.json")
    assert own.publish([run], f"--name a --of {of}", evaluation) == 2
    said = said.format(first=place.of("first")[0] / BEST)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("commit", "was '{commit} with uncommitted changes': publish what was measured"),
        ("evaluation", "was 'version 0.1.0': publish what was measured in a checkout"),
        ("parts", "was '{commit} with uncommitted changes': publish what was measured"),
        ("digests", "has no digest of"),
        ("resumed", "is of other weights or settings than"),
        ("validation", "is of the validation split: published figures are of test classes"),
        ("unfinished seed", "seed2 is at step 0 of 1: publish it when it is finished"),
        ("settings", "does not say how it was measured: evaluate again"),
        ("path", "has no evaluation of"),
        ("unfinished", "is at step 0 of 1: publish it when it is finished"),
    ],
)
def test_runs_that_are_not_published(
    damage: str, said: str, place: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run, other) = (shutil.copytree(r, tmp_path / r.name) for r in place.of("first"))
    report: dict[str, Any] = json.loads((place.place / EVALUATION).read_text())
    if damage != "path":
        for entries in ("checkpoints", "digests"):
            report[entries] = {
                str(tmp_path / Path(name).parent.name / BEST): found
                for name, found in report[entries].items()
            }
    if damage == "commit":
        text = (other / PROVENANCE).read_text()
        (other / PROVENANCE).write_text(text.replace(COMMIT, f"{COMMIT} with uncommitted changes"))
    if damage == "evaluation":
        report["provenance"]["commit"] = "version 0.1.0"
    if damage == "settings":
        del report["settings"]
    if damage == "parts":
        report["provenance"]["commit"] = f"{COMMIT}, {COMMIT} with uncommitted changes"
    if damage == "digests":
        del report["digests"]
    if damage == "resumed":  # Its weights are of a later step than those that were evaluated.
        state = checkpoints.load(other / BEST)
        weights = {name: 2 * p for name, p in state.outer.items()}
        checkpoints.save(replace(state, outer=weights), other / BEST)
    if damage == "validation":
        report["settings"]["split"] = "validation"
    if damage == "unfinished":
        (run / "log.jsonl").unlink()
    if damage.startswith("unfinished"):
        (other / "log.jsonl").unlink()
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    words = FIRST.replace("-1 ", "-2 ")
    assert place.publish([run, other], words, str(tmp_path / "evaluation.json")) == 2
    assert said.format(commit=COMMIT) in capsys.readouterr().err
