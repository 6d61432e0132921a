"""Starts the processes of a group and waits for them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]


def start_group(module: str, ranks: int, *words: str, seconds: float = 3600) -> None:
    """Runs a module of the tests in several processes, each with its rank.

    Raises:
        RuntimeError: if one of them fails.
    """
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as place:
        meet = ["--meet", f"{place}/meet", "--ranks", str(ranks)]
        group = [
            subprocess.Popen(
                [sys.executable, "-m", module, *meet, "--rank", str(rank), *words],
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
