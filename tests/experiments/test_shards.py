"""Work divided by ``--shard`` and ``--jobs`` gives what one process gives."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_folder, options, write_recipe

from fewshot_blo.commands import main as cli
from fewshot_blo.experiments import compared_runs
from fewshot_blo.records import provenance
from fewshot_blo.training.run import BEST


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoints(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A shared encoder and an initialisation."""
    place = tmp_path_factory.mktemp("runs")
    for name, problem in (("a", "SharedEncoder"), ("b", "Initialization")):
        words = options(folder, train__steps=1, train__validate_every=1, problem=problem)
        assert cli.main(["train", str(place / name), *words, "--test_tasks=0"]) == 0
    return [str(place / name / BEST) for name in ("a", "b")]


def figures(path: Path) -> Any:
    """The file without the provenance, as text: equal byte by byte."""
    content = json.loads(path.read_text())
    assert content.pop("provenance")["torch"]
    return json.dumps(content)


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


@pytest.fixture
def whole(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """What is printed and written without shards."""
    words = ("evaluate", *checkpoints, "--tasks=7", "--chunk=1")
    return evaluated(capsys, *words, f"--output={tmp_path / 'w.json'}"), figures(
        tmp_path / "w.json"
    )


def test_merged_parts_report_what_one_process_reports(
    checkpoints: list[str],
    whole: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "e.json"
    words = ("evaluate", *checkpoints, "--tasks=7", "--chunk=1", f"--output={output}")
    for number in (1, 2, 3):
        said = evaluated(capsys, *words, "--shard", f"{number}/3")
        path = tmp_path / f"e-{number}-of-3.json"
        assert path.is_file()
        assert said.splitlines()[-1] == (
            f"part {number}/3 written to {path}; when all 3 are there: "
            f"fewshot-blo merge {tmp_path}/e-*-of-3.json --output {output}"
        )
    parts = sorted(map(str, tmp_path.glob("e-*-of-3.json")))
    assert not output.exists()
    assert evaluated(capsys, "merge", *parts, f"--output={output}") == whole[0]
    assert figures(output) == whole[1]
    # One that is missing, one of another evaluation, one that is damaged, one that is none.
    assert cli.main(["merge", *parts[:2]]) == 1
    assert "1 of 3 parts is missing (3/3): evaluate with --shard 3/3" in capsys.readouterr().err
    assert cli.main([*words, "--seed=5", "--shard=3/3"]) == 0
    capsys.readouterr()
    assert cli.main(["merge", *parts]) == 1
    assert "parts 1/3 and 3/3 differ in their protocol" in capsys.readouterr().err
    assert cli.main(["merge", str(output)]) == 1
    assert "is no part of an evaluation" in capsys.readouterr().err
    text = Path(parts[0]).read_text()
    Path(parts[0]).write_text(text.replace('"steps": 2', '"steps": 3'))
    assert cli.main(["merge", *parts]) == 1
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_parts_of_several_commits_are_all_named(
    checkpoints: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was measured with code that is not committed says so after merging, too."""
    whole, compared = tmp_path / "e.json", tmp_path / "compared"
    evaluating = ("evaluate", *checkpoints, "--tasks=2", "--norm=support", f"--output={whole}")
    comparing = comparison(checkpoints, compared, "--seed=3")
    commits = ["a" * 40, f"{'b' * 40} with uncommitted changes"]
    for number, commit in enumerate(commits, 1):
        monkeypatch.setattr(provenance, "_commit", partial(str, commit))
        evaluated(capsys, *evaluating, f"--shard={number}/2")
        evaluated(capsys, *comparing, f"--shard={number}/2")
    monkeypatch.setattr(provenance, "_commit", partial(str, commits[0]))
    evaluated(capsys, "merge", *map(str, tmp_path.glob("e-*.json")), f"--output={whole}")
    evaluated(capsys, *comparing)
    for file in (whole, compared / "evaluation.json"):
        listed = json.loads(file.read_text())["provenance"]["commit"]
        assert sorted(listed.split(", ")) == commits


@pytest.mark.slow
def test_jobs_report_what_one_process_reports(
    checkpoints: list[str],
    whole: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "e.json"
    words = ("evaluate", *checkpoints, "--tasks=7", "--chunk=1", f"--output={output}")
    first, rest = evaluated(capsys, *words, "--jobs=2").split("\n", 1)
    assert first.startswith("2 jobs of 1 thread each")
    assert rest == whole[0]
    assert figures(output) == whole[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.json", "w.json"]


@pytest.mark.slow
def test_a_job_that_fails_is_one_message(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(Path(checkpoints[0]).parent, tmp_path / "run")
    (tmp_path / "run" / BEST).write_bytes(b"nothing")
    assert cli.main(["evaluate", str(tmp_path / "run" / BEST), "--jobs=2"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"fewshot-blo evaluate: {tmp_path / 'run' / BEST} ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--shard 0/4", "shard is '0/4': it must be a part i/n"),
        ("--shard 0/4", "parts are counted from 1"),
        ("--shard 5/4", "shard is '5/4': it must be a part i/n with whole numbers 1 <= i <= n"),
        ("--shard 2of4", "shard is '2of4': it must be a part i/n"),
        ("--shard 1.5/4", "as 2/4 for the second of four parts"),
        ("--shard 2", "shard is '2': it must be a part i/n"),
        ("--shard /4", "shard is '/4'"),
        ("--shard 1/", "shard is '1/'"),
        ("--shard=-1/4", "shard is '-1/4'"),
        ("--jobs 0", "jobs is 0: it must be at least 1"),
        ("--jobs 99999", "jobs is 99999: it must be at most"),
    ],
)
def test_wrong_parts_are_refused(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "x.pt", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_a_shard_in_three_words_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "x.pt", "--shard", "2 of 4"]) == 2
    assert "shard is '2 of 4': it must be a part i/n" in capsys.readouterr().err
    assert cli.main(["evaluate", "x.pt", "--shard=1/2", "--jobs=2"]) == 1
    assert "shard is 1/2 and jobs is 2: give one of them" in capsys.readouterr().err


@pytest.fixture(scope="module")
def recipes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A recipe that starts from another, which is no source, and one for itself."""
    place = tmp_path_factory.mktemp("recipes")
    short = {"train__steps": 1, "train__validate_every": 2, "train__validation_tasks": 1}
    write_recipe(place / "first.yaml", folder, problem="Pretraining", **short)
    after = {"start_from": "first.yaml", "strategy__inner__steps": 0}
    found = [
        write_recipe(place / "after.yaml", folder, **after, **short),
        write_recipe(place / "maml.yaml", folder, problem="Initialization", **short),
    ]
    return list(map(str, found))


TIMED = ("seconds", "tasks_per_second", "peak_gib", "outer steps", "minutes")


def table(path: Path) -> list[dict[str, str]]:
    """The lines of a table without what depends on the machine."""
    with path.open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]


def of_comparison(place: Path) -> tuple[Any, Any]:
    """Figures of a comparison, without the name of its folder."""
    return figures(place / "evaluation.json").replace(str(place), ""), table(place / "table.csv")


def comparison(recipes: list[str], place: Path, *words: str) -> list[str]:
    shared = ("--tasks=6", "--norm=support", "--chunk=1")
    return ["compare", *recipes, f"--folder={place}", *shared, *words]


@pytest.fixture(scope="module")
def compared(recipes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("compared")
    assert cli.main(comparison(recipes, place)) == 0
    return place


@pytest.mark.slow
def test_a_comparison_by_shards_is_that_of_one_process(
    recipes: list[str],
    compared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "shards"
    said = [
        evaluated(capsys, *comparison(recipes, place, f"--shard={number}/2")).splitlines()[-1]
        for number in (2, 1)
    ]
    end = "when all 2 are, the same command without --shard prints the table"
    assert said == [f"part 2/2 is done, 1 run; {end}", f"part 1/2 is done, 1 run; {end}"]
    assert not (place / "table.md").exists()
    assert {path.name for path in place.iterdir()} == {
        "first", "after", "maml", "evaluated",
    }  # fmt: skip
    # Neither trained nor evaluated again.
    monkeypatch.setattr(compared_runs, "measure", lambda *_, **__: pytest.fail("evaluated again"))
    before = {path: path.stat().st_mtime_ns for path in place.glob(f"*/*/{BEST}")}
    evaluated(capsys, *comparison(recipes, place))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert of_comparison(place) == of_comparison(compared)
    assert {path.name for path in place.iterdir()} == {path.name for path in compared.iterdir()}


def test_a_part_of_runs_that_cannot_be_compared_is_refused(
    folder: Path, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "other.yaml", folder, episodes__validation_query=1)
    words = comparison([str(recipe), checkpoints[0]], tmp_path / "runs", "--shard=2/2")
    assert cli.main(words) == 1
    assert "the tasks are 3-way 1-shot 3 queries a class for" in capsys.readouterr().err


def test_another_request_is_evaluated_again(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of parts are of one checkpoint, one data set and one request."""
    evaluated(capsys, *comparison(checkpoints[:1], tmp_path / "a", "--shard=1/1"))
    evaluated(capsys, *comparison(checkpoints[:1], tmp_path / "a", "--seed=7"))
    evaluated(capsys, *comparison(checkpoints[:1], tmp_path / "b", "--seed=7"))
    assert of_comparison(tmp_path / "a") == of_comparison(tmp_path / "b")


@pytest.mark.slow
def test_a_comparison_by_jobs_is_that_of_one_process(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    evaluated(capsys, *comparison(checkpoints, one))
    said = evaluated(capsys, *comparison(checkpoints, several, "--jobs=2"))
    assert said.startswith("2 jobs of 1 thread each")
    assert of_comparison(several) == of_comparison(one)
    assert {path.name for path in several.iterdir()} == {path.name for path in one.iterdir()}
