"""A few faults of each kind; ``python -m faults`` has all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "programs"),
    [
        ("kills", ["train"]),
        ("company", ["train"]),
        ("damage", ["train", "finetune"]),
        ("malice", []),
        ("leaks", []),
    ],
)
def test_a_few_faults_are_survived(part: str, programs: list[str]) -> None:
    # A process of its own: it forks, which a process with threads should not do.
    paths = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    chosen = ["--program", *programs] if programs else []
    ended = subprocess.run(
        [sys.executable, "-m", "faults", "--each", "1", "--part", part, *chosen],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
