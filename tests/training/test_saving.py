"""When a run saves, and what remains of it after faults of the machine."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import (
    SETTINGS,
    SignallingSampler,
    assert_identical,
    checkpoint_data,
    log_records,
    make_dataset,
    make_folder,
    make_sampler,
    options,
    run,
)
from torch import Tensor

from fewshot_blo.bilevel import OuterStep
from fewshot_blo.commands import main as cli
from fewshot_blo.errors import CheckpointError
from fewshot_blo.records import files
from fewshot_blo.records.locks import LOCK, writing
from fewshot_blo.tasks import EpisodicSampler, TaskBatch, folder
from fewshot_blo.training.run import BEST, LAST, Run

RARELY = replace(SETTINGS, validate_every=100)


class Acting(EpisodicSampler):
    """Draws the training tasks of ``run``, and acts before a batch."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        super().__init__(make_dataset(), way=3, shot=1, query=2, tasks=3)
        self.at, self.act = at, act

    def batch(self, index: int, embeddings: Tensor | None = None) -> TaskBatch:
        if index == self.at:
            self.act()
        return super().batch(index, embeddings)


class Killed(Exception):
    pass


def kill() -> None:
    raise Killed


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "saved"), [(10.0, 1), (1e-9, 3), (0.0, 1)])
def test_the_first_step_is_saved_and_those_after_some_time(
    minutes: float, saved: int, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = replace(RARELY, save_minutes=minutes)
    run(whole, settings=settings)
    with pytest.raises(Killed):
        run(parts, settings=settings, tasks=Acting(3, kill))
    assert checkpoint_data(parts)["step"] == saved
    run(parts, settings=settings, resume=True)
    for name in (LAST, BEST):
        assert_identical(checkpoint_data(whole, name), checkpoint_data(parts, name))
    assert log_records(whole) == log_records(parts)


def test_a_lost_connection_saves(tmp_path: Path) -> None:
    stopped = run(tmp_path, tasks=SignallingSampler(3, signal.SIGHUP, signal.SIGHUP))
    assert stopped.interrupted
    assert checkpoint_data(tmp_path)["step"] == stopped.step


def test_nohup_goes_on(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert not run(tmp_path, tasks=SignallingSampler(3, signal.SIGHUP)).interrupted
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path):
        for resume in (False, True):
            with pytest.raises(CheckpointError, match=f"in use: process {os.getpid()}"):
                run(tmp_path, resume=resume)
    run(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_several_processes_without_a_group_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CheckpointError, match="WORLD_SIZE is 2, and there is no process group"):
        run(tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_folder_removed_during_the_run_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, tasks=Acting(1, lambda: shutil.rmtree(folder)))
    assert {"config.yaml", LAST, BEST, "log.jsonl"} <= {path.name for path in folder.iterdir()}
    assert checkpoint_data(folder)["step"] == SETTINGS.steps
    assert len({record["step"] for record in log_records(folder)}) == SETTINGS.steps


def test_a_best_checkpoint_removed_during_the_run_is_said(tmp_path: Path) -> None:
    settings = replace(SETTINGS, validation_tasks=1, learning_rate=1e-9)
    with pytest.raises(CheckpointError, match=r"best\.pt of step 2 was removed.*last\.pt has"):
        run(tmp_path, settings=settings, tasks=Acting(4, (tmp_path / BEST).unlink))
    assert checkpoint_data(tmp_path)["step"] == SETTINGS.steps


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: 8")]
)
def test_memory_of_the_host_runs_out(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = Run.hypergradient

    def hypergradient(self: Run, batch: TaskBatch) -> OuterStep:
        if self.step == 2:
            raise error
        return original(self, batch)

    monkeypatch.setattr(Run, "hypergradient", hypergradient)
    words = options(make_folder(tmp_path / "data"), train__validate_every=100)
    assert cli.main(["train", f"--run={tmp_path / 'r'}", *words]) == 1
    said = capsys.readouterr().err
    assert "fewshot-blo train: memory ran out in outer step 3: " in said
    assert f"{tmp_path / 'r' / LAST} is the last save" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2, 4, 6])
def test_a_full_disk_at_any_write_leaves_the_earlier_files(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After so many writes: of settings, log, checkpoints and figures."""
    parts = tmp_path / "parts"
    images = make_folder(tmp_path / "data")
    folder.load(images, size=16, color=False)  # Decoded before: their file is not meant.
    command = ["train", *options(images), "--test_tasks=2"]
    sync, left = os.fsync, [number]

    def full(descriptor: int) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    status = cli.main([*command, f"--run={parts}"])
    said = capsys.readouterr().err
    monkeypatch.setattr(os, "fsync", sync)
    assert status == 1
    assert said.count("\n") == 1
    assert "No space left on device" in said
    assert str(parts) in said
    assert not list(parts.glob(".*"))
    resume = ["--resume"] if (parts / LAST).exists() else []
    assert cli.main([*command, f"--run={parts}", *resume]) == 0
    assert checkpoint_data(parts)["step"] == 4


PROGRAM = """
import os, signal, sys
sys.path[:0] = {paths}
from pathlib import Path
from fewshot_blo.records import files
from small_runs import run
import torch
torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)
replace, left = Path.replace, [{writes}]
def killing(path, target):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return replace(path, target)
Path.replace = killing
run(Path({folder!r}))
"""


@pytest.mark.slow
def test_a_process_killed_in_a_write_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tests = tmp_path / "run", Path(__file__).resolve().parents[1]
    program = PROGRAM.format(paths=[str(tests.parent), str(tests)], writes=5, folder=str(folder))
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(folder.glob(".*.tmp"))
    monkeypatch.setattr(files, "_YOUNG", -1.0)
    run(folder, resume=True)
    run(tmp_path / "whole")
    assert not list(folder.glob(".*"))
    assert_identical(checkpoint_data(folder), checkpoint_data(tmp_path / "whole"))


def test_the_sampler_of_these_tests_draws_as_that_of_other_runs() -> None:
    own, other = Acting(-1, kill).batch(3), make_sampler(make_dataset()).batch(3)
    assert own.support_x.equal(other.support_x)
