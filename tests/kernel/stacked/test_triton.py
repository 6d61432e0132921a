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


def skip_without_float64() -> None:
    if release("triton") < (3, 5):
        pytest.skip("Triton before 3.5 has no products of matrices in float64")


def check(file: str, kernels: str, **settings: str) -> None:
    """Runs a file's tests in a process of its own."""
    environment = {**os.environ, "KERNELS": kernels, **settings}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    # The interpreter of Triton before 3.8 takes numbers out of arrays as NumPy 1.25 deprecated.
    command += ["-W", "ignore:Conversion of an array with ndim > 0:DeprecationWarning"]
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
    if file == "test_convolution.py":
        skip_without_float64()
    check(file, "triton", TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_on_the_device(file: str) -> None:
    check(file, "cuda")


IMAGES = {"x", "g", "y", "u", "out", "pooled", "over_g", "over_x"}
VECTORS = {"a", "b", "sign", "scale", "shift", "u_scale", "u_shift", "mean", "variance", "partial"}
CONSTANTS = {
    "POOL": 2,
    "SLOPE": 0.1,
    "CHANNELS": 32,
    "HIGH": 3,
    "WIDE": 3,
    "DIVISOR_H": 1,
    "DIVISOR_W": 1,
    "ROWS": 64,
    "COLUMNS": 32,
    "DEPTH": 16,
    "PRECISION": "ieee",
}


@pytest.mark.slow
# Triton builds syntax trees as Python 3.13 deprecates.
@pytest.mark.filterwarnings("ignore:AnnAssign.__init__ missing:DeprecationWarning")
@pytest.mark.parametrize(
    ("images", "precision", "capability"),
    [("fp32", "ieee", 80), ("fp32", "tf32", 90), ("bf16", "ieee", 90), ("fp64", "ieee", 80)],
)
def test_compiles_without_a_device(
    images: str, precision: str, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Down to machine code, which Triton's own assembler writes."""
    if images == "fp64":
        skip_without_float64()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fewshot_blo.kernel.stacked.fused import (
        triton_affine,
        triton_convolution,
        triton_moments,
        triton_scatter,
    )

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    real = triton.language.float64 if images == "fp64" else triton.language.float32
    constants = {**CONSTANTS, "REAL": real, "PRECISION": precision}
    kernels = [
        kernel
        for module in (triton_moments, triton_scatter, triton_affine, triton_convolution)
        for kernel in vars(module).values()
        if isinstance(kernel, triton.JITFunction) and kernel.__name__.endswith("_kernel")
    ]
    assert len(kernels) == 9
    for kernel in kernels:
        own = {name: constants[name] for name in kernel.arg_names if name in constants}
        types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(own, "constexpr")
        types |= dict.fromkeys({*IMAGES, "weight"} & set(types), f"*{images}")
        vectors = "*fp64" if images == "fp64" else "*fp32"
        types |= dict.fromkeys(VECTORS & set(types), vectors)
        source = ASTSource(kernel, types, own)
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert binary.asm["cubin"], kernel.__name__
