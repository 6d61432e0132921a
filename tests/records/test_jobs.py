"""Jobs share work, count together, and end together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from small_jobs import accidents, looks_at_gpu, squares

from fewshot_blo.machine import default_device as default_device_module
from fewshot_blo.machine.memory import free_bytes, memory_limit
from fewshot_blo.records import jobs
from fewshot_blo.records.jobs import run_jobs


def check_ended(folder: Path) -> None:
    """All jobs that began an item are gone."""
    for file in folder.iterdir():
        process = int(file.name.rpartition("-")[2])
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_items_are_shared_and_lines_and_counts_arrive(
    capfd: pytest.CaptureFixture[str],
) -> None:
    torch.set_num_threads(2)
    try:
        found = dict(run_jobs(squares, [3, 4, 5], 2))
    finally:
        torch.set_num_threads(1)
    assert {place: result[0] for place, result in found.items()} == {0: 9, 1: 16, 2: 25}
    assert {threads for _, threads, _ in found.values()} == {1}
    assert os.getpid() not in {process for _, _, process in found.values()}
    out, err = capfd.readouterr()
    assert err == ""
    first, *lines = out.splitlines()
    assert first == "2 jobs of 1 thread each"
    assert sorted(lines) == ["squaring 3", "squaring 4", "squaring 5"]


@pytest.mark.slow
def test_a_job_that_is_killed_ends_all(tmp_path: Path) -> None:
    message = r"job ./2 was killed \(SIGKILL\).*use fewer jobs"
    with pytest.raises(ChildProcessError, match=message):
        list(run_jobs(partial(accidents, tmp_path), ["wait", "die"], 2, progress=False))
    check_ended(tmp_path)


@pytest.mark.slow
def test_the_others_go_on_if_that_is_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    items = ["begin", "die", "again"]
    found = dict(run_jobs(partial(accidents, tmp_path), items, 2, goes_on=True))
    assert found == {0: "begin", 2: "again"}
    assert "was killed (SIGKILL): its own messages" in capfd.readouterr().out
    check_ended(tmp_path)


@pytest.mark.slow
def test_jobs_may_finish_a_step_and_say_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_SAID_AFTER", 0.1)
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(partial(accidents, tmp_path), ["save", "stop"], 2))
    assert (tmp_path / "saved").exists()
    out = capfd.readouterr().out.splitlines()
    assert "1 job may finish a step and save; Ctrl-C again kills" in out
    assert "line 999 " + 100 * "." in out  # More than a pipe holds.
    (tmp_path / "saved").unlink()
    check_ended(tmp_path)


def test_a_second_interrupt_kills(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(partial(accidents, tmp_path), ["hang", "twice"], 2, progress=False))
    check_ended(tmp_path)


def test_gpus_are_taken_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for name, value in (("_turn", None), ("_jobs", 1), ("_is_taken", False)):
        monkeypatch.setattr(default_device_module, name, value)
    assert default_device_module.default_device() == torch.device("cuda")
    assert taken == []
    default_device_module.take_turn(0, 3)
    assert [default_device_module.jobs_on(gpu) for gpu in range(2)] == [3, 3]  # Named by the user.
    for turn in range(3):
        default_device_module.take_turn(turn, 3)
        assert default_device_module.default_device() == torch.device("cuda")
    assert taken == [0, 1, 0]
    assert [default_device_module.jobs_on(gpu) for gpu in range(2)] == [2, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("named", "limit", "expected"),
    [
        ("", None, {0: 30.0, 1: 60.0}),  # Two jobs on the first GPU, one on the second.
        ("cuda:1", None, {1: 20.0}),
        ("", 12.0, {0: 4.0, 1: 4.0}),
    ],
)
def test_jobs_divide_the_memory_of_a_gpu(
    named: str, limit: float | None, expected: dict[int, float], tmp_path: Path
) -> None:
    """Each holds what was free when the first one looked, divided by the jobs of this GPU."""
    with memory_limit(limit):
        make = partial(looks_at_gpu, tmp_path, named)
        found = [free for _, free in run_jobs(make, range(3), 3, progress=False)]
    assert {gpu: own for gpu, own, _ in found} == pytest.approx(expected)
    assert len({(gpu, own) for gpu, own, _ in found}) == len(expected)
    # Later others have taken much: what is free is less than the share.
    assert {later for _, _, later in found} == {3.0}


def test_a_share_of_the_host_is_none_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, free in (("mem_get_info", (80 * 2**30, 0)), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments, free=free: free)
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 2**30)
    gpu = torch.device("cuda")
    assert free_bytes(gpu) == 80 * 2**30
    with memory_limit(4.0):
        assert free_bytes(gpu) == 3 * 2**30
    with memory_limit(4.0, on_gpu=False):
        assert free_bytes(gpu) == 80 * 2**30


def test_an_interrupt_ends_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(partial(accidents, tmp_path), ["wait", "interrupt"], 2, progress=False))
    check_ended(tmp_path)


_PARENT = """
import sys
from functools import partial
from pathlib import Path
from small_jobs import accidents
from fewshot_blo.records.jobs import run_jobs
list(run_jobs(partial(accidents, Path(sys.argv[1])), ["wait"], 1))
"""


@pytest.mark.slow
def test_jobs_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    """The program has no guard of __main__, which is not run again in the job."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", _PARENT, tmp_path], env=environment) as parent:
        while not list(tmp_path.iterdir()):
            time.sleep(0.02)
        parent.kill()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            check_ended(tmp_path)
        except BaseException:  # It is not gone yet.
            time.sleep(0.02)
        else:
            return
    check_ended(tmp_path)
