"""The Triton kernels: by Triton's interpreter, on a CUDA device, and through its compiler.

The checks are those of ``test_fused``, ``test_convolution`` and ``test_blocks``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = ("test_fused.py", "test_convolution.py", "test_blocks.py")


def release(package: str) -> tuple[int, ...]:
    """Major and minor number; (0, 0) where it is not installed."""
    try:
        return tuple(int(part) for part in version(package).split(".")[:2])
    except PackageNotFoundError:
        return (0, 0)


pytestmark = pytest.mark.skipif(release("triton") < (3, 3), reason="Triton 3.3 is not installed")


def check(file: str, kernels: str, **settings: str) -> None:
    """Runs a file's tests in a process of its own."""
    environment = {**os.environ, "KERNELS": kernels, **settings}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(HERE / file)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    release("numpy") >= (2, 4) and release("triton") < (3, 8),
    reason="the interpreter of Triton before 3.8 does not run with NumPy 2.4",
)
@pytest.mark.parametrize("file", FILES)
def test_interpreted(file: str) -> None:
    check(file, "triton", TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_on_the_device(file: str) -> None:
    check(file, "cuda")
