"""C kernels for the CPU, compiled at first use and stored in the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("norm_pool.c")
FLAGS = "-O3 -march=native -std=gnu11 -fPIC -shared -fopenmp -fno-math-errno -fno-trapping-math"
REALS = {
    torch.float32: ("float", ctypes.c_float),
    torch.float64: ("double", ctypes.c_double),
}


@dataclass(frozen=True)
class NativeKernels:
    """The functions of ``norm_pool.c`` by name, or the reason why there are none.

    Attributes:
        libraries: compiled library for each dtype.
        reason: why there are none, in one line; empty if there are.
    """

    libraries: dict[torch.dtype, ctypes.CDLL]
    reason: str = ""

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """Dtypes of tensors that the kernels accept."""
        return frozenset(self.libraries)

    def call(self, name: str, *arguments: Tensor | int | float) -> None:
        """Calls a function with contiguous CPU tensors of one dtype, which selects the library.

        Raises:
            MemoryError: if the function cannot allocate memory for its sums.
        """
        dtype = next(a.dtype for a in arguments if isinstance(a, Tensor))
        suffix, real = REALS[dtype]
        converted: list[Any] = []
        for argument in arguments:
            if isinstance(argument, Tensor):
                assert argument.is_contiguous(), f"{name}: {argument.stride()}"
                assert argument.dtype == dtype, f"{name}: {argument.dtype} and {dtype}"
                converted.append(ctypes.c_void_p(argument.data_ptr()))
            elif isinstance(argument, int):
                converted.append(ctypes.c_int64(argument))
            else:
                converted.append(real(argument))
        if getattr(self.libraries[dtype], f"{name}_{suffix}")(*converted):
            raise MemoryError(f"{name}: out of memory for the sums per channel")


@functools.cache
def native_kernels() -> NativeKernels:
    """The compiled kernels; the first call on a machine compiles them, which takes seconds.

    The compiler is the environment variable ``CC``, by default ``cc``. With ``CC`` empty nothing
    is compiled.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler:
        return NativeKernels({}, "CC is empty")
    try:
        version = _run([*compiler, "--version"])
        folder = _cache_folder()
        libraries = {}
        for dtype, (name, _) in REALS.items():
            flags = [*FLAGS.split(), f"-DREAL={name}"]
            key = hashlib.sha256(
                "\n".join((SOURCE.read_text(), version, *flags, _processor())).encode()
            )
            library = folder / f"norm_pool-{name}-{key.hexdigest()[:16]}.so"
            if not library.exists():
                _compile([*compiler, *flags], library)
            libraries[dtype] = ctypes.CDLL(str(library))
    except (OSError, RuntimeError) as error:
        return NativeKernels({}, str(error).strip().splitlines()[0])
    return NativeKernels(libraries)


def _compile(command: list[str], library: Path) -> None:
    """Compiles to a temporary folder, then renames: other processes may do the same."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        _run([*command, str(SOURCE), "-o", str(built)])
        built.replace(library)


def _run(command: list[str]) -> str:
    """Returns the output of a command.

    Raises:
        RuntimeError: if it fails.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"'{shlex.join(command[:1])}' fails: {result.stderr.strip()}")
    return result.stdout


def _cache_folder() -> Path:
    """A folder that only this user can write to: code is loaded from it."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".cache"
    folder = base / "fewshot_blo" / "native"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise RuntimeError(f"other users can write to {folder}: run chmod 700 on it, or remove it")
    return folder


def _processor() -> str:
    """CPU features, on which ``-march=native`` depends: several machines may share a cache."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
