"""The number format of convolutions and matrix products; all else stays in float32."""

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
"bfloat16": the network's forward pass, and so its derivatives, has operands of 8 bits of mantissa.

float16 is not offered: inner gradients underflow its range, and the scaling of losses that prevents
it in ordinary training would have to be undone at every inner step.
"""


def check_precision(precision: Precision, example: Tensor) -> None:
    """Tells whether a network can be run in a precision.

    Args:
        precision: the setting.
        example: a parameter of the network, for its dtype and device.

    Raises:
        ConfigurationError: if not.
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
            "is of float32 parameters; use precision 'float32', which computes in their dtype, or "
            "convert the network with .float()"
        )
    if precision == "tf32" and not _has_tf32(example.device):
        raise ConfigurationError(
            f"precision is 'tf32' and the parameters are on {example.device}, which has no TF32: "
            "use 'float32' there, or move the network to a GPU of compute capability 8.0 first"
        )


def offered_precisions(example: Tensor) -> list[Precision]:
    """The precisions in which a network with such float32 parameters can be run."""
    tf32: list[Precision] = ["tf32"] if _has_tf32(example.device) else []
    return ["float32", *tf32, "bfloat16"]


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on for a device; it is not there for all kinds of them."""
    return device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)


def forward_precision(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """For a forward pass alone: derivatives run outside, in the formats that it left behind."""
    if precision != "bfloat16":
        return nullcontext()
    # Cached casts of parameters would outlive the step in which they were right.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@contextmanager
def product_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Turns TF32 on or off for the products of a forward pass and of all its derivatives.

    PyTorch's flags are the process's: they are put back on the way out. Inside, from PyTorch 2.9
    on, the flags of before cannot be read; with "tf32" ``torch.compile`` does (pytorch#166387).
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
    """What decides at present whether products of float32 use TF32.

    From PyTorch 2.9 on ``torch.get_float32_matmul_precision`` fails where the flags are in use.
    """
    return tuple(getattr(module, name) for module, name, _ in _flags())


def uses_tf32(device: torch.device) -> bool:
    """Whether convolutions of float32 may use TF32 at present."""
    module, name, (_, on) = _flags()[1]
    return _has_tf32(device) and getattr(module, name) == on


def _flags() -> list[tuple[Any, str, tuple[object, object]]]:
    """Where the flags of matrix products, convolutions and LSTMs are; their values: off, on."""
    products: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        modules = (products, cudnn.conv, cudnn.rnn)
        return [(module, "fp32_precision", ("ieee", "tf32")) for module in modules]
    # Before PyTorch 2.9; since then these names warn.
    return [(module, "allow_tf32", (False, True)) for module in (products, cudnn)]
