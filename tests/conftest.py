"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from small_digits import write_digits

# Deterministic CUDA matrix products need this before CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.use_deterministic_algorithms(True)
# The tests' tensors are small, and sums keep one order whatever the number of cores.
torch.set_num_threads(1)
# Under nohup it is ignored, and tests of a lost connection are not.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
settings.register_profile("reproducible", derandomize=True, database=None, deadline=None)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Starts every test from the same global random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def few_adapted_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running statistics of initializations are of so few tasks, for tests that wait for them."""
    monkeypatch.setattr("fewshot_blo.problems.passes._TASKS", 5)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for caches that all tests share: what is slow to compute is computed once.

    The processes of pytest-xdist share it too: one decodes, and the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache_home"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def own_cache_home(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder for the caches of one test alone, which may damage them."""
    folder = tmp_path_factory.mktemp("own_cache_home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small MNIST of patterns under noise."""
    root = tmp_path_factory.mktemp("digits")
    write_digits(root)
    return root


@pytest.fixture(scope="session")
def data_root() -> Iterator[Path]:
    """The folder of real data sets; tests that need it are skipped where there is none.

    An error at the end of the session if a test wrote into it.
    """
    configured = os.environ.get("FEWSHOT_BLO_DATA")
    folder = (
        Path(configured) if configured else Path(__file__).resolve().parents[2] / "shared" / "data"
    )
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: name their folder in FEWSHOT_BLO_DATA")
    before = listing(folder)
    yield folder
    assert listing(folder) == before, "a test wrote into the folder of real data sets"


def listing(folder: Path) -> dict[Path, int]:
    """Everything in a folder, with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.hookimpl(tryfirst=True)  # Before `-m` chooses.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Makes the cases of a test marked ``sampled(n)`` slow, but each n-th."""
    seen: Counter[str] = Counter()
    for item in items:
        if sampled := item.get_closest_marker("sampled"):
            name = item.nodeid.split("[")[0]
            if seen[name] % sampled.args[0]:
                item.add_marker("slow")
            seen[name] += 1


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests marked ``gpu`` where there is no CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
