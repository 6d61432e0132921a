from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from small_runs import checkpoint_data, log_records, make_folder, options

from fewshot_blo.checks.backends import Comparison
from fewshot_blo.checks.device import DeviceCheck, Speed
from fewshot_blo.commands import main as cli
from fewshot_blo.experiments.settings import Config
from fewshot_blo.training.run import BEST, LAST

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with a network in which the norm modes differ."""
    run = tmp_path_factory.mktemp("run")
    assert cli.main(["train", *options(folder), f"--run={run}", "--test_tasks=7"]) == 0
    return run


def data_options(folder: Path) -> list[str]:
    """Those of a small run that say which data and tasks."""
    return [word for word in options(folder) if word.startswith(("--data", "--episodes"))]


def start(*arguments: str) -> subprocess.Popen[str]:
    """A process of the command line."""
    return subprocess.Popen(
        [sys.executable, "-m", "fewshot_blo.commands.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def test_train_leaves_everything_that_it_promises(trained: Path, folder: Path) -> None:
    names = {"last.pt", "best.pt", "log.jsonl", "curves.png", "config.yaml", "evaluation.json"}
    names |= {"provenance.jsonl"}
    assert names | {"tensorboard"} == {path.name for path in trained.iterdir()}
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config.keys() == asdict(Config()).keys()
    assert config["data"]["root"] == str(folder)
    assert checkpoint_data(trained)["config"] == config
    validated = [r["step"] for r in log_records(trained) if "accuracy/validation" in r]
    assert validated == [2, 4]
    report = json.loads((trained / "evaluation.json").read_text())
    (evaluations,) = report["checkpoints"].values()
    assert [e["norm"] for e in evaluations] == ["transductive", "support", "running"]
    assert all(e["tasks"] == len(e["task_accuracy"]) == 7 for e in evaluations)
    assert evaluations[0]["protocol"] == (
        "3-way 1-shot 3 queries a class, seed 1000, 2 inner steps"
    )


def test_output_without_a_terminal_is_one_line_a_validation(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *options(folder), f"--run={tmp_path}", "--test_tasks=0"]) == 0
    captured = capsys.readouterr()
    # On a slow machine, also lines of how far it is.
    assert all(line.startswith("training: step ") for line in captured.err.splitlines())
    classes, chosen, first, second, last = captured.out.splitlines()
    assert classes == "classes: 10 for train, 3 for validation, 3 for test"
    assert "at a time" in chosen
    assert first.startswith("step 2: validation ")
    assert second.startswith("step 4: validation ")
    assert last.startswith("best validation accuracy ")


def test_the_saved_settings_repeat_the_run(trained: Path, tmp_path: Path) -> None:
    arguments = [f"--config={trained / 'config.yaml'}", f"--run={tmp_path}", "--test_tasks=0"]
    assert cli.main(["train", *arguments]) == 0
    assert log_records(tmp_path) == log_records(trained)


def test_a_network_of_ones_own_is_evaluated_after_its_training(
    folder: Path, tmp_path: Path
) -> None:
    own = options(folder, encoder="small_runs:make_encoder", encoder__hidden=None)
    assert cli.main(["train", *own, f"--run={tmp_path}", "--test_tasks=3"]) == 0
    assert (tmp_path / "evaluation.json").is_file()
    assert cli.main(["evaluate", str(tmp_path / BEST), "--tasks=2"]) == 1  # A file of anybody's.


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_resume_goes_on(
    number: signal.Signals, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = options(folder, train__steps=10**6, train__validate_every=10**6)
    process = start("train", *endless, f"--run={tmp_path}", "--test_tasks=0")
    log = tmp_path / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"{number.name}: finishing this step, then saving" in out + err
    step = checkpoint_data(tmp_path)["step"]
    assert f"stopped at step {step}; continue with the same command and --resume" in out
    assert not (tmp_path / BEST).exists()
    more = options(folder, train__steps=step + 2, train__validate_every=10**6)
    arguments = ["train", *more, f"--run={tmp_path}", "--test_tasks=0", "--resume"]
    assert cli.main(arguments) == 0
    steps = [r["step"] for r in log_records(tmp_path) if "loss/outer" in r]
    assert steps == list(range(1, step + 3))
    assert "best validation accuracy" in capsys.readouterr().out


def test_settings_that_are_younger_than_a_run(
    folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    saved = torch.load(run / LAST, weights_only=True)
    del saved["config"]["encoder"]["pools"]
    torch.save(saved, run / LAST)
    words = ["train", f"--run={run}", "--resume", "--test_tasks=0"]
    assert cli.main([*words, *options(folder)]) == 0
    torch.save(saved, run / LAST)
    assert cli.main([*words, *options(folder, encoder__pools=2)]) == 1
    assert "encoder.pools was 4 and is 2" in capsys.readouterr().err


def test_refused_resume_leaves_the_saved_settings(
    folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in trained.glob("*.*")}
    wide = options(folder, encoder__hidden=16)
    assert cli.main(["train", *wide, f"--run={trained}", "--resume"]) == 1
    error = capsys.readouterr().err
    assert "encoder.hidden was 8 and is 16; resume with the settings in" in error
    assert cli.main(["train", *options(folder), f"--run={trained}"]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in trained.glob("*.*")}


def test_evaluate_compares_checkpoints_on_the_same_tasks(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "figures.json"
    paths = [str(trained / BEST), str(trained / LAST)]
    assert cli.main(["evaluate", *paths, "--tasks=9", f"--output={output}"]) == 0
    out = capsys.readouterr().out
    assert out.count(f"minus {paths[0]}, same tasks") == 3
    assert out.count("9 tasks, 3-way 1-shot 3 queries a class, seed 1000, 2 inner steps)") == 6
    assert out.count("hardest classes (transductive): ") == 2
    figures = json.loads(output.read_text())["checkpoints"]
    assert list(figures) == paths
    for evaluation in figures[paths[1]]:
        accuracy = evaluation["task_accuracy"]
        assert evaluation["mean"] == pytest.approx(sum(accuracy) / 9)
        assert f"{100 * evaluation['mean']:.2f} ± {100 * evaluation['interval_95']:.2f} %" in out
        assert all(0 <= value <= 1 for value in evaluation["class_accuracy"].values())


def test_evaluate_with_other_tasks(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = ["--tasks=1", "--way=2", "--shot=2", "--query=1", "--seed=5", "--steps=0"]
    assert cli.main(["evaluate", str(trained / BEST), *request, "--split=train"]) == 0
    out = capsys.readouterr().out
    assert "1 tasks, 2-way 2-shot 1 queries a class, seed 5, train split, 0 inner steps)" in out


def test_evaluate_with_another_protocol(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = ["--tasks=2", "--way=2", "--query=1", "--protocol=Dirichlet", "--protocol.alpha=5"]
    assert cli.main(["evaluate", str(trained / BEST), *request]) == 0
    assert "2-way 1-shot 2 queries Dirichlet(5), seed 1000" in capsys.readouterr().out
    assert cli.main(["evaluate", str(trained / BEST), "--protocol=Dirichlets"]) == 2
    assert "did you mean Dirichlet?" in capsys.readouterr().err


def test_evaluate_finds_moved_data(trained: Path, folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(folder)
    assert cli.main(["evaluate", str(trained / BEST), "--tasks=2", f"--root={moved}"]) == 0


@pytest.fixture(autouse=True)
def device_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = DeviceCheck(None, [Speed("fewshot_blo", 8.0, "batched")])
    monkeypatch.setattr("fewshot_blo.commands.check.check_device", lambda device: found)


@pytest.mark.slow
def test_check_agrees(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *options(folder, strategy="Penalty"), "--check_tasks=2"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "torch " in lines[0]
    assert lines[1] == "layers that the kernel computes itself: 5 Sequential, 4 Conv2d"
    assert lines[2].startswith("backend: ")
    compared = [line for line in lines if line.endswith(" agrees")]
    for word in ("transductive", "support", "batched", "loop", "Penalty as set", "BOME"):
        assert any(word in line for line in compared)
    start = 1 + next(n for n, line in enumerate(lines) if line.startswith("error against"))
    *errors, kernels, exact, course = [line.split() for line in lines[start:-2]]
    assert lines[-2].startswith("tasks a second, Conv4-64")
    assert lines[-1].split() == ["fewshot_blo", "8", "1", "of", "ours", "batched"]
    assert [words[0] for words in errors] == ["float32", "bfloat16"]
    assert kernels[0] == "kernels:"
    assert float(errors[0][2]) < 1e-3
    assert exact[2:5] == ["degrees", "from", "that"]
    assert 0 <= float(exact[1]) <= 180
    before, *after = map(float, course[6:])
    assert len(after) == 2
    assert after[1] < after[0] < before


@pytest.mark.slow
def test_check_finds_inner_steps_that_are_too_long(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = options(folder, strategy__inner__rule__step_size="1000", problem__prox="0.1")
    assert cli.main(["check", *long, "--check_tasks=2"]) == 0
    assert "it rises in 2 of 2 steps, which are too long then" in capsys.readouterr().out


@pytest.mark.slow
def test_check_at_the_weights_of_a_checkpoint(
    trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are those of the checkpoint, and the backends are compared whichever the run had."""
    config, checkpoint = trained / "config.yaml", trained / BEST

    def angle(*arguments: str) -> str:
        assert cli.main(["check", f"--config={config}", "--check_tasks=2", *arguments]) == 0
        out = capsys.readouterr().out
        assert " agrees\n" in out
        return out.splitlines()[-4]

    at_start = angle()
    at_end = angle(f"--checkpoint={checkpoint}")
    assert at_start != at_end
    assert at_end == angle("--checkpoint", str(checkpoint), "--seed=7", "--problem.backend=loop")


def test_check_with_a_checkpoint_of_other_settings(
    trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = options(folder, encoder__hidden="5")
    assert cli.main(["check", *other, f"--checkpoint={trained / BEST}"]) == 1
    assert "the checkpoint has another configuration" in capsys.readouterr().err


def test_check_that_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    comparisons = [
        Comparison("a", "support", "loop", 1e-12),
        Comparison("b", "support", "loop", 1e-3),
        Comparison("c", "support", "batched", float("nan"), "no rule"),
    ]
    target = "fewshot_blo.commands.check.check_kernel"
    monkeypatch.setattr(target, lambda *args, **options: comparisons)
    assert cli.main(["check", *options(folder)]) == 1
    first, second, third = capsys.readouterr().out.splitlines()[3:6]
    assert first.split() == ["a", "support", "loop", "1.0e-12", "agrees"]
    assert second.split() == ["b", "support", "loop", "1.0e-03", "DIFFERS"]
    assert third.split() == ["c", "support", "batched", "not", "run:", "no", "rule"]


def test_data(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "episodes.png"
    assert cli.main(["data", *data_options(folder), f"--picture={picture}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = " ".join(lines[0].split())
    assert words == "train 10 classes, 60 images of 1x16x16, 6 to 6 a class"
    assert [line.split()[0] for line in lines[1:3]] == ["validation", "test"]
    with Image.open(picture) as image:
        image.load()


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    process = start("--help")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert all(f"  {command} " in out for command in cli.COMMANDS)
    assert cli.main([]) == 0
    assert capsys.readouterr().out == out
    assert cli.main(["trian"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fewshot-blo: there is no command 'trian' (did you mean train?)")


def test_out_of_memory_is_one_line_with_a_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(data: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nA long explanation.")

    monkeypatch.setattr("fewshot_blo.commands.data.load", fail)
    assert cli.main(["data", *data_options(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fewshot-blo data: CUDA out of memory. Lower train.chunk")
    assert error.count("\n") == 1
