"""Starts the processes of a group and waits for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def start_group(folder: Path, ranks: int, *duties: str, seconds: float = 600) -> list[Any]:
    """What the duties returned in each process; None for one that wrote nothing.

    Args:
        folder: an empty folder, where the processes meet.
        ranks: number of processes.
        duties: names of ``ranks.member.DUTIES``.
        seconds: time after which they are stopped.

    Raises:
        RuntimeError: if one of them fails.
    """
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    places = ["--folder", str(folder), "--ranks", str(ranks)]
    group = [
        subprocess.Popen(
            [sys.executable, "-m", "ranks.member", *places, "--rank", str(rank), *duties],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=seconds)[1] for process in group]
    finally:
        for process in group:
            process.kill()
    if any(process.returncode for process in group):
        raise RuntimeError("\n".join(said))
    files = [folder / f"{rank}.json" for rank in range(ranks)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]
