"""Selects the kernels for a tensor's device: compiled C on the CPU, Triton on CUDA devices."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from fewshot_blo.kernel.stacked.fused.native import native_kernels


class Kernels(Protocol):
    """The functions of ``norm_pool.c``, in any implementation.

    Attributes:
        reason: why there are none, in one line; empty if there are.
    """

    @property
    def reason(self) -> str: ...

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """Dtypes of images that the kernels accept."""
        ...

    def call(self, name: str, *arguments: Tensor | int | float) -> None:
        """Calls a function with contiguous tensors."""
        ...


@dataclass(frozen=True)
class TritonKernels:
    """The Triton kernels, or the reason why there are none.

    Attributes:
        norms: the functions of ``norm_pool.c``, by name.
        products: the module of convolutions.
        reason: why there are none, in one line; empty if there are.
    """

    norms: Mapping[str, Callable[..., None]]
    products: ModuleType | None
    reason: str = ""

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """Dtypes of images that the kernels accept; with bfloat16, vectors are float32."""
        if not self.norms:
            return frozenset()
        return frozenset({torch.float32, torch.float64, torch.bfloat16})

    def call(self, name: str, *arguments: Tensor | int | float) -> None:
        """Calls a function with contiguous tensors on one device."""
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        assert all(t.is_contiguous() for t in tensors), name
        with torch.cuda.device_of(tensors[0]):
            self.norms[name](*arguments)


@functools.cache
def triton_kernels() -> TritonKernels:
    """The Triton kernels; imported at the first call and compiled for each type of arguments."""
    if importlib.util.find_spec("triton") is None:
        return TritonKernels({}, None, "Triton is not installed")
    try:
        moments, scatter, affine, products = (
            importlib.import_module(f"fewshot_blo.kernel.stacked.fused.triton_{name}")
            for name in ("moments", "scatter", "affine", "convolution")
        )
        norms = {
            "pool_moments": moments.pool_moments,
            "scatter_affine": scatter.scatter_affine,
            "gather_sums": scatter.gather_sums,
            "affine_relu": affine.affine_relu,
            "affine_relu_backward": affine.affine_relu_backward,
            "affine_relu_double": affine.affine_relu_double,
        }
        return TritonKernels(norms, products)
    except Exception as error:  # Triton may not support this Python, driver or PyTorch.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return TritonKernels({}, None, f"Triton cannot be imported: {reason[0]}")


FOR_DEVICE: dict[str, Callable[[], Kernels]] = {"cpu": native_kernels, "cuda": triton_kernels}


@dataclass(frozen=True)
class _NoKernels:
    """For devices without kernels."""

    reason: str = "there are no kernels for this device"
    dtypes: frozenset[torch.dtype] = frozenset()

    def call(self, name: str, *arguments: Tensor | int | float) -> None:
        raise NotImplementedError(f"{name}: {self.reason}")


def kernels_for(device: torch.device) -> Kernels:
    """The kernels for a device, which may be none."""
    return FOR_DEVICE.get(device.type, _NoKernels)()
