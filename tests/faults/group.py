"""A process of a group that ``torchrun`` started is killed; the others, and the run, go on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from small_runs import make_folder, options

from faults.row import Row
from faults.same import difference

ROOT = Path(__file__).parents[2]
RANKS, STEPS, SECONDS = 2, 24, 600


def measure(place: Path, each: int) -> Iterator[Row]:
    """A row on kills of a random process at a random step.

    Args:
        place: an empty folder to work in.
        each: number of kills.
    """
    images, whole, folder = make_folder(place / "classes"), place / "whole", place / "run"
    failed = _wait(_torchrun(images, folder), "a run without a kill")
    assert failed is None, failed
    folder.rename(whole)
    row = Row("kill", f"one of {RANKS} processes of train under torchrun")
    for number in range(each):
        shutil.rmtree(folder, ignore_errors=True)
        row.add(_killed(images, folder, number) or difference(whole, folder))
    yield row


def _torchrun(images: Path, folder: Path) -> subprocess.Popen[str]:
    changes: dict[str, object] = {"train__validate_every": 6, "train__chunk": 2}
    settings = [str(folder), *options(images, train__steps=STEPS, **changes)]
    words = [f"--standalone --nproc_per_node={RANKS} --max-restarts=1 -m fewshot_blo train"]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *words[0].split(), *settings],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _killed(images: Path, folder: Path, seed: int) -> str | None:
    """Kills a process once; why the run did not end well, or None."""
    drawn = random.Random(seed)
    group, at, rank = _torchrun(images, folder), drawn.randrange(STEPS), drawn.randrange(RANKS)
    log, end = folder / "log.jsonl", time.monotonic() + SECONDS
    while time.monotonic() < end and group.poll() is None:
        if log.exists() and log.read_text().count("loss/outer") >= at:
            os.kill(_children(group.pid)[rank], signal.SIGKILL)
            break
        time.sleep(0.01)
    return _wait(group, f"rank {rank} killed at step {at}")


def _wait(group: subprocess.Popen[str], what: str | None) -> str | None:
    try:
        said, _ = group.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        group.kill()
        return f"{what}: not ended after {SECONDS} s"
    if group.returncode:
        return f"{what}: exit status {group.returncode}: {said[:4000]}"
    if "Traceback" in said:
        return f"{what}: a traceback: {said[-400:]}"
    return None


def _children(parent: int) -> list[int]:
    """The processes that a process started, oldest first."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return sorted(map(int, found))
