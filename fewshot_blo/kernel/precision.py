"""Number formats of convolutions and matrix products: float32, TF32 and bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError

Precision = Literal["float32", "tf32", "bfloat16"]
"""How a network's products are computed. Parameters, losses, gradients and the statistics of batch
norms keep the dtype of the parameters, and so does a head outside of the network.

"float32": in the dtype of the parameters; TF32 is off on a GPU, whatever PyTorch's own default.
"tf32": on a GPU, factors are rounded to 10 bits of mantissa and summed in float32.
"bfloat16": products of the forward pass, and so of its derivatives, have bfloat16 operands.

float16 is not offered: inner gradients underflow its range, and the loss scaling that prevents this
in ordinary training would have to be undone at every inner step.
"""


def check_precision(precision: Precision, example: Tensor) -> None:
    """Checks that a network can be run in a precision.

    Args:
        precision: the setting.
        example: a parameter of the network, for its dtype and device.

    Raises:
        ConfigurationError: if the precision is unknown, parameters are not float32, or the device
            has no TF32.
    """
    if precision not in get_args(Precision):
        raise ConfigurationError(
            f"precision is '{precision}': use one of {', '.join(get_args(Precision))}"
        )
    if precision == "float32":
        return
    if example.dtype != torch.float32:
        raise ConfigurationError(
            f"precision is '{precision}' and the parameters are {example.dtype}: reduced precision "
            "needs float32 parameters; use precision 'float32', which computes in their dtype, or "
            "convert the network with .float()"
        )
    if precision == "tf32" and not _has_tf32(example.device):
        raise ConfigurationError(
            f"precision is 'tf32' and the parameters are on {example.device}, which has no TF32: "
            "use 'float32' there, or move the network to a GPU of compute capability 8.0 or higher"
        )


def offered_precisions(example: Tensor) -> list[Precision]:
    """Precisions in which a network with float32 parameters like ``example`` can be run."""
    tf32: list[Precision] = ["tf32"] if _has_tf32(example.device) else []
    return ["float32", *tf32, "bfloat16"]


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on for a device; False for devices other than CPU and CUDA."""
    return device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)


def forward_precision(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast of a forward pass; derivatives run outside of it, in the dtypes it recorded."""
    if precision != "bfloat16":
        return nullcontext()
    # A cached cast of a parameter would be stale after an inner step.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@contextmanager
def product_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Turns TF32 on or off for the products of a forward pass and of all its derivatives.

    PyTorch's flags are global and are restored on exit. Inside, from PyTorch 2.9 on, the older
    flags cannot be read, which ``torch.compile`` does under "tf32" (pytorch#166387).
    """
    if device.type != "cuda":
        yield
        return
    flags = _flags()
    before = [getattr(module, name) for module, name, _ in flags]
    try:
        for module, name, values in flags:
            setattr(module, name, values[precision == "tf32"])
        yield
    finally:
        for (module, name, _), value in zip(flags, before, strict=True):
            setattr(module, name, value)


def product_flags() -> tuple[object, ...]:
    """Current values of the flags that decide whether float32 products use TF32.

    From PyTorch 2.9 on ``torch.get_float32_matmul_precision`` fails once these flags are in use.
    """
    return tuple(getattr(module, name) for module, name, _ in _flags())


def uses_tf32(device: torch.device) -> bool:
    """Whether float32 convolutions may currently use TF32."""
    module, name, (_, on) = _flags()[1]
    return _has_tf32(device) and getattr(module, name) == on


def _flags() -> list[tuple[Any, str, tuple[object, object]]]:
    """Module, name, and values for off and on of the flags of products, convolutions and LSTMs."""
    products: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        modules = (products, cudnn.conv, cudnn.rnn)
        return [(module, "fp32_precision", ("ieee", "tf32")) for module in modules]
    # Before PyTorch 2.9; since then these names warn.
    return [(module, "allow_tf32", (False, True)) for module in (products, cudnn)]
