"""What the figures were measured on, and with."""

from __future__ import annotations

import os
import platform
import resource
from importlib import metadata
from pathlib import Path

import torch

from fewshot_blo.kernel.stacked.fused import describe_kernels
from fewshot_blo.machine.memory import free_bytes
from fewshot_blo.records.provenance import provenance

_PACKAGES = ("torch", "triton", "numpy", "higher", "learn2learn", "torchopt", "jax", "jaxlib")
_ENVIRONMENT = ("OMP_", "MKL_", "MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES", "PYTORCH_", "CUBLAS_")


def describe(device: torch.device) -> dict[str, object]:
    """Machine, versions, commit and command, as plain data."""
    return {
        **provenance(device, kernels=describe_kernels(device)),
        "device": device.type,
        "processor": _processor(),
        "memory_gib": round(_memory() / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {'-'.join(platform.libc_ver())}",
        "gpu": _gpu(device) if device.type == "cuda" else None,
        "packages": {name: _version(name) for name in _PACKAGES},
        "environment": {k: v for k, v in os.environ.items() if k.startswith(_ENVIRONMENT)},
    }


def limit_memory() -> None:
    """Turns a run that does not fit into the host's free memory into an error of its own.

    Otherwise the system ends some process to make room, and not always the one that asked.
    """
    free = int(0.9 * free_bytes(torch.device("cpu")))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or free < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (free, hard))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu(device: torch.device) -> dict[str, object]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
