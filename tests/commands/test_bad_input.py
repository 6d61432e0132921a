"""Whatever a user gets wrong ends in one message that says what to do, and leaves no debris."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import make_folder, options

from fewshot_blo.commands import main as cli
from fewshot_blo.training.run import BEST

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def best(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an initialisation for 3-way tasks."""
    run = tmp_path_factory.mktemp("run")
    small = options(folder, problem="Initialization", train__steps=1)
    assert cli.main(["train", *small, f"--run={run}", "--test_tasks=0"]) == 0
    return run / BEST


def message(
    capsys: pytest.CaptureFixture[str], command: str, *arguments: str, code: int = 1
) -> str:
    """The one line that a failing command prints."""
    assert cli.main([command, *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith(f"fewshot-blo {command}: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    return error


def left_behind(run: Path) -> set[str]:
    """Files of a run that ended before its first checkpoint."""
    return {path.name for path in run.rglob("*") if path.is_file()} if run.exists() else set()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name", ["Omniglot", "MiniImageNet", "TieredImageNet", "CIFARFS", "Folder"]
)
@pytest.mark.parametrize("command", ["train", "data", "check"])
def test_missing_folder(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent"
    error = message(capsys, command, f"--data={name}", f"--data.root={absent}")
    assert str(absent) in error
    error = message(capsys, command, f"--data={name}")
    assert "--data.root" in error
    assert not list(tmp_path.iterdir())


def test_truncated_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole.npz"
    np.savez(whole, classes=np.array(["a"]), c00=np.zeros(1000, np.uint8))
    archive = tmp_path / "cifar100_fewshot_webp.npz"
    archive.write_bytes(whole.read_bytes()[:600])
    whole.unlink()
    error = message(capsys, "data", "--data=CIFARFS", f"--data.root={tmp_path}")
    assert str(archive) in error
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_an_image_that_does_not_decode(
    content: bytes, folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "class05" / "3.png").write_bytes(content)
    error = message(capsys, "train", *options(copy), f"--run={run}")
    assert str(copy / "class05" / "3.png") in error
    assert not run.exists()


WRONG: list[dict[str, object]] = [
    {"episodes__tasks": 0},
    {"train__steps": -1},
    {"train__norm": "running"},
    {"encoder": "math"},
]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"episodes__way": 20}, "20-way tasks need 20 classes"),
        ({"episodes__way": 4}, "4-way tasks need 4 classes, but this split has 3"),
        ({"episodes__validation_way": 4}, "4-way tasks need 4 classes, but this split has 3"),
        ({"episodes__shot": 5}, "has 6 images, but 5 shots + 2 queries need 7"),
        ({"episodes__validation_query": 6}, "has 6 images, but 1 shots + 6 queries need 7"),
        ({"episodes__tasks": 0}, "episodes.tasks is 0"),
        ({"episodes__seed": -1}, "seed is -1"),
        ({"episodes__way": "[4,2]"}, "way is (4, 2)"),
        ({"data__size": 12}, "use images of at least 16x16"),
        ({"train__steps": -1}, "train.steps is -1"),
        ({"train__norm": "running"}, "train with 'transductive' or 'support'"),
        ({"problem__prox": -1}, "problem.prox is -1"),
        ({"encoder__hidden": 9, "encoder__norm": "group"}, "use a multiple of 8"),
        ({"strategy": "Penalty", "problem": "Initialization"}, "identically zero"),
        ({"strategy__inner__rule": "LearnedSGD"}, "no learned step size"),
        ({"strategy": "Penalty", "problem__head": "Matching"}, "use Unroll with 0 steps"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        (
            {"encoder": "absent_module:network", "encoder__hidden": None},
            "No module named 'absent_module'",
        ),
        ({"encoder": "math"}, "module:function"),
        ({"strategy__inner__rule__step_size": 1e30}, "lower the inner step size"),
        ({"adaptation__rule__step_size": 1e30}, "lower the step size"),
    ],
)
def test_settings_that_do_not_fit(
    changes: dict[str, object], words: str, folder: Path, run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    # Those that no data set or network could make right are wrong arguments.
    code = 2 if changes in WRONG else 1
    error = message(capsys, "train", *options(folder, **changes), f"--run={run}", code=code)
    assert words in error
    # The log and the settings of a run that began may stay; a second attempt overwrites them.
    assert not [name for name in left_behind(run) if name.endswith((".pt", ".tmp"))]


def test_test_classes_too_few_for_the_evaluation_at_the_end(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    divided = tmp_path / "split.csv"
    splits = ["train"] * 8 + ["validation"] * 6 + ["test"] * 2
    rows = [f"class{c:02},{split}" for c, split in enumerate(splits)]
    divided.write_text("\n".join(["class,split", *rows]))
    error = message(capsys, "train", *options(folder, data__csv=divided), f"--run={run}")
    assert "3-way tasks need 3 classes, but this split has 2" in error
    assert not run.exists()


@pytest.mark.parametrize("command", ["train", "evaluate", "check", "data"])
def test_unknown_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = ["x.pt"] if command == "evaluate" else []
    error = message(capsys, command, *checkpoint, "--colour=red", code=2)
    assert "--colour" in error
    assert f"see fewshot-blo {command} --help" in error


def test_files_that_are_no_checkpoints(
    tmp_path: Path, best: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent.pt"
    assert f"there is no checkpoint {absent}" in message(capsys, "evaluate", str(absent))
    text = tmp_path / "text.pt"
    text.write_text("text")
    assert f"{text} cannot be read as a checkpoint" in message(capsys, "evaluate", str(text))
    cut = tmp_path / "cut.pt"
    cut.write_bytes(best.read_bytes()[:-900])
    assert "truncated" in message(capsys, "evaluate", str(best), str(cut))
    other = tmp_path / "other.pt"
    torch.save({"state_dict": {}}, other)
    assert "not a checkpoint of format 1" in message(capsys, "evaluate", str(other))


def changed(best: Path, file: Path, **config: object) -> str:
    """A copy of a checkpoint whose settings are changed."""
    data = torch.load(best, weights_only=True)
    torch.save({**data, "config": {**data["config"], **config}}, file)
    return str(file)


def test_checkpoints_of_other_settings(
    tmp_path: Path, best: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = torch.load(best, weights_only=True)["config"]
    wide = changed(best, tmp_path / "wide.pt", encoder={**config["encoder"], "hidden": 16})
    error = message(capsys, "evaluate", wide, "--tasks=2")
    assert "has another configuration" in error
    newer = changed(best, tmp_path / "newer.pt", novelty={"a": 1})
    assert "settings that are unknown to this version" in message(capsys, "evaluate", newer)
    wrong = changed(best, tmp_path / "wrong.pt", train=3)
    assert "settings that are unknown to this version" in message(capsys, "evaluate", wrong)
    none = tmp_path / "none.pt"
    torch.save({**torch.load(best, weights_only=True), "config": {}}, none)
    assert "saved without a configuration" in message(capsys, "evaluate", str(none))


def test_checkpoints_that_cannot_be_compared(
    tmp_path: Path, best: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = torch.load(best, weights_only=True)["config"]
    data = changed(best, tmp_path / "data.pt", data={**config["data"], "size": 32})
    assert "one data set" in message(capsys, "evaluate", str(best), data, "--tasks=2")
    shots = changed(best, tmp_path / "shots.pt", episodes={**config["episodes"], "shot": 2})
    error = message(capsys, "evaluate", str(best), shots, "--tasks=2")
    assert "set way, shot and query" in error


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--way=2", "the network has 3 outputs and the tasks are 2-way"),
        ("--query=60", "1 shots + 60 queries need 61"),
        ("--device=cuda:77", "cannot be used"),
        ("--root=/nowhere", "/nowhere is not a folder"),
    ],
)
def test_requests_that_do_not_fit(
    option: str, words: str, best: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in message(capsys, "evaluate", str(best), option)


def test_a_request_of_no_task(best: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tasks is 0" in message(capsys, "evaluate", str(best), "--tasks=0", code=2)


@pytest.mark.parametrize("option", ["episodes__way", "episodes__validation_way"])
def test_tasks_of_one_class_measure_nothing(
    option: str, folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They reported 100.00 %, and chose the best checkpoint by it."""
    code = 2 if option == "episodes__way" else 1
    small = options(folder, **{option: 1})
    error = message(capsys, "train", *small, f"--run={run}", code=code)
    assert "way is 1: it must be at least 2, or every answer is right" in error
    assert not (run / BEST).exists()


def test_one_way_is_refused_in_evaluation(best: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "way is 1: it must be at least 2" in message(capsys, "evaluate", str(best), "--way=1")


@pytest.mark.slow
def test_full_disk_while_saving(folder: Path, run: Path) -> None:
    limit = 150_000  # Above what the log takes, below a checkpoint.

    result = subprocess.run(
        [
            *(sys.executable, "-m", "fewshot_blo.commands.main", "train"),
            *options(folder, encoder__hidden=32, train__steps=2),
            f"--run={run}",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("fewshot-blo train: cannot write the checkpoint ")
    assert "File too large" in result.stderr
    assert not [name for name in left_behind(run) if name.endswith((".pt", ".tmp"))]


def test_a_file_in_place_of_the_run(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.write_text("precious")
    assert str(run) in message(capsys, "train", *options(folder), f"--run={run}")
    assert run.read_text() == "precious"


@pytest.mark.parametrize("command", ["train --config", "check --config", "compare"])
def test_a_study_is_no_recipe_of_a_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes" / "studies" / "denoising-linear-25.yaml")
    name, *option = command.split()
    error = message(capsys, name, *option, recipe, code=1 if name == "compare" else 2)
    assert f"{recipe} is a study: use fewshot-blo study" in error
