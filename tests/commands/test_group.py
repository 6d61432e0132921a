"""Processes that torchrun started: how they meet, who reports an error, what is refused."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_runs import make_folder, write_recipe
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import Store

from fewshot_blo.commands import main as cli
from fewshot_blo.commands import running
from fewshot_blo.commands.group import Meeting, of_this_attempt

QUICK = {"train__steps": 1, "train__chunk": 3, "strategy__recompute": "false", "encoder__hidden": 2}


def test_attempts_do_not_read_what_others_left() -> None:
    store = HashStore()
    with ThreadPoolExecutor(3) as threads:
        for attempt in range(3):  # What an attempt leaves is there for the next one.

            def meet(rank: int) -> Store:
                return of_this_attempt(store, rank, 3)

            met = list(threads.map(meet, range(3)))
            assert not any(own.check(["address"]) for own in met)
            met[attempt].set("address", str(attempt))
            assert [own.get("address") for own in met] == [str(attempt).encode()] * 3


def test_the_first_to_fail_reports() -> None:
    met = [Meeting(HashStore(), rank, 2) for rank in range(2)]
    same = [Meeting(met[0].store, rank, 2) for rank in range(2)]
    assert (same[1].speaks(), same[0].speaks(), same[1].speaks()) == (True, False, True)


@pytest.mark.parametrize(
    ("variables", "words", "said"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, ["finetune", "x"], "finetune runs in one process"),
        ({"WORLD_SIZE": "2"}, ["train"], "variable RANK expected, but not set: start several"),
        ({"WORLD_SIZE": "many"}, ["train"], "WORLD_SIZE is 'many': it must be a number"),
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            ["compare", "a.yaml", "--shard=1/2"],
            "torchrun divides the work among 2 processes by itself: leave out shard",
        ),
    ],
)
def test_what_cannot_run_in_several_processes(
    variables: dict[str, str],
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if words[0] == "compare":
        monkeypatch.setattr(running, "meeting", lambda: Meeting(HashStore(), 0, 2))
    assert cli.main(words) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_one_process_alone_reports_what_all_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["predict", "x"]) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["compare", "--help"], 0),
        (["predict", "--help"], 0),
        (["train", "--strategy.help", "Implicit"], 0),
        (["nonsense"], 2),
    ],
)
def test_one_process_alone_answers_what_is_asked_of_all(
    words: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(words) == status
    alone = capsys.readouterr()
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in range(2):  # None waits for the other one.
        monkeypatch.setenv("RANK", str(rank))
        assert cli.main(words) == status
        said.append(capsys.readouterr())
    assert said == [alone, ("", "")]


@pytest.mark.parametrize("command", ["compare", "study"])
def test_processes_that_share_a_table_do_not_speak_of_parts(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command == "compare":
        images = make_folder(tmp_path / "images")
        recipes = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
        words = [str(write_recipe(path, images, **QUICK)) for path in recipes] + ["--tasks=2"]
    else:
        recipe = tmp_path / "few.yaml"
        recipe.write_text(
            "study: min-norm\nrows:\n  a: {steps: 1}\n  b: {steps: 1}\n", encoding="utf-8"
        )
        words = [str(recipe)]
    words = [command, *words, f"--folder={tmp_path / 'table'}"]
    store = HashStore()
    store.set("done 1", "")  # The other process has nothing to do.
    monkeypatch.setattr(running, "meeting", lambda: Meeting(store, 0, 2))
    monkeypatch.setattr("fewshot_blo.records.logs.draw_curves", lambda *arguments: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "| method" in out
    assert "part 1/2" not in out
    assert "--shard" not in out
    # Without torchrun it is said.
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli.main([*words, "--shard=1/2"]) == 0
    assert "part 1/2 is done, " in capsys.readouterr().out


_LAUNCHER = """
import os, subprocess, sys
group = [
    subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env={**os.environ, "RANK": rank})
    for rank in "01"
]
group[0].wait()
"""
_MEMBER = """
import os, sys, time
from pathlib import Path
from fewshot_blo.commands.group import meeting
met = meeting()
Path(sys.argv[1], f"{met.rank}-{os.getpid()}").touch()
if met.rank:
    met.wait_for_all()
time.sleep(600)
"""


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Whether or not they are a process group, and one of them waits for the others."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    words = [sys.executable, "-c", _LAUNCHER, _MEMBER, str(tmp_path)]
    with subprocess.Popen(words, env=environment) as launcher:
        end = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        launcher.kill()
    members = [int(file.name.partition("-")[2]) for file in tmp_path.iterdir()]
    assert len(members) == 2
    end = time.monotonic() + 20
    while any(map(_runs, members)) and time.monotonic() < end:
        time.sleep(0.05)
    left = list(filter(_runs, members))
    for member in left:
        os.kill(member, signal.SIGKILL)
    assert left == []


def _runs(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
