from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fewshot_blo.errors import CheckpointError
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.locks import LOCK, writing

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import os, sys, time
from pathlib import Path
from fewshot_blo.records.locks import writing
with writing(Path(sys.argv[1])):
    if sys.argv[2:] and os.fork() == 0:
        print("held", flush=True)
        time.sleep(60)
    elif not sys.argv[2:]:
        print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Another process that writes into the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_until_it_is_killed(tmp_path: Path) -> None:
    other = hold(tmp_path)
    try:
        with (
            pytest.raises(
                CheckpointError,
                match=rf"is in use: process {other.pid} on {platform.node()} has written to it "
                r"since 20.*; wait for it, stop it, or choose another folder",
            ),
            writing(tmp_path),
        ):
            pass
        assert (tmp_path / LOCK).exists()
    finally:
        other.kill()
        other.communicate()
    assert (tmp_path / LOCK).exists()
    with writing(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert not (tmp_path / LOCK).exists()


def test_a_forked_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    other = hold(tmp_path, "fork")
    try:
        other.kill()  # Its child lives on.
        other.wait()
        with writing(tmp_path):
            pass
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.communicate()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(CheckpointError, match=rf"cannot write into {folder} \(.*\): choose"),
            writing(folder),
        ):
            pass


def test_a_new_folder_stays_only_if_something_was_written(tmp_path: Path) -> None:
    with writing(tmp_path / "a"):
        pass
    assert not (tmp_path / "a").exists()
    with writing(tmp_path / "b"):
        (tmp_path / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["file"]


def test_a_folder_removed_meanwhile_is_no_error(tmp_path: Path) -> None:
    with writing(tmp_path / "a"):
        (tmp_path / "a" / LOCK).unlink()
        (tmp_path / "a").rmdir()


@pytest.mark.parametrize(("size", "is_refused"), [("2", True), ("1", False), ("", False)])
def test_several_processes_of_torchrun_are_refused(
    size: str, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    if not is_refused:
        with writing(tmp_path):
            return
    with (
        pytest.raises(CheckpointError, match=r"WORLD_SIZE is 2, and .*without torchrun"),
        writing(tmp_path),
    ):
        pass


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with (
        pytest.warns(UserWarning, match="without locks"),
        writing(tmp_path),
        atomic_write(tmp_path / "file") as file,
    ):
        file.write(b"written")
    assert (tmp_path / "file").read_bytes() == b"written"


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    old, young = (tmp_path / f".{digit * 16}.tmp" for digit in "ab")
    foreign = tmp_path / ".mine.tmp"
    for file in (old, young, foreign):
        file.touch()
    hour_ago = time.time() - 3600
    for file in (old, foreign):
        os.utime(file, (hour_ago, hour_ago))
    with atomic_write(tmp_path / "file"):
        (own,) = set(tmp_path.glob(".*.tmp")) - {old, young, foreign}
        os.utime(own, (hour_ago, hour_ago))
        with writing(tmp_path):
            pass
        assert own.exists()
    assert sorted(tmp_path.iterdir()) == sorted([young, foreign, tmp_path / "file"])
