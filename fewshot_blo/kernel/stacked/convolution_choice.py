"""Chooses the algorithm of a convolution or of one of its gradients.

On the CPU it is PyTorch's own convolution, whose kernels reach the speed of matrix products; on a
CUDA device the applicable algorithms are timed once for each kind of product, shape and dtype.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from fewshot_blo.kernel.graph import is_recording
from fewshot_blo.kernel.precision import product_flags
from fewshot_blo.kernel.stacked.convolution_algorithms import (
    ALGORITHMS,
    Algorithm,
    Geometry,
    Kind,
    by_halves,
    can_halve,
    fits,
)
from fewshot_blo.machine.timing import device_seconds

logger = logging.getLogger(__name__)

TOO_MANY = 1 << 31
"""Number of entries that exceeds 32-bit indices: cuDNN rejects such tensors."""

_chosen: dict[tuple[object, ...], Algorithm] = {}


def product(kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry) -> Tensor:
    """One of the three partial derivatives of ``<g, x * w>``.

    Args:
        kind: "output" takes x and w, "input" g and w, "weight" g and x.
        a: the first of them.
        b: the second of them.
        other: for "output" the bias or None; for "input" and "weight" any x or w, for its shape.
        geometry: geometry of the convolution.
    """
    if _largest(kind, a, b, other, geometry) >= TOO_MANY and can_halve(a, geometry):
        return by_halves(product, kind, a, b, other, geometry)
    a, b = geometry.arrange(a), geometry.arrange(b)
    algorithm = choose(kind, a, b, other, geometry)
    return ALGORITHMS[algorithm](kind, a, b, other, geometry)


def _largest(kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry) -> int:
    """Number of entries of the largest operand or result."""
    sizes = [z.numel() for z in (a, b, other) if z is not None]
    if kind == "output":
        height, width = geometry.output_size(a, b)
        sizes.append(len(a) * len(b) // geometry.tasks * height * width)
    return max(sizes)


def choose(kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry) -> Algorithm:
    """The fastest algorithm on this device, timed at first use.

    With ``torch.use_deterministic_algorithms`` it is always "grouped", since timings vary.
    Algorithms that fail are skipped.

    Raises:
        RuntimeError: the error of "grouped", if every algorithm fails.
    """
    if a.device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return "grouped"
    key = (kind, a.shape, b.shape, a.dtype, a.device, geometry, product_flags())
    if key in _chosen:
        return _chosen[key]
    if is_recording():  # A capture runs nothing that could be timed.
        return "grouped"
    _chosen[key] = _fastest(kind, a, b, other, geometry)
    return _chosen[key]


def _fastest(
    kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry
) -> Algorithm:
    seconds: dict[Algorithm, float] = {}
    failures: dict[Algorithm, Exception] = {}
    for name, compute in ALGORITHMS.items():
        if not fits(name, kind, geometry):
            continue
        try:
            run = functools.partial(compute, kind, a, b, other, geometry)
            seconds[name] = device_seconds(run, a.device)
        # Triton's compilation and launch errors have no common base class.
        except Exception as error:
            failures[name] = error
    figures = [f"{name} {1e3 * s:.3f} ms" for name, s in seconds.items()]
    figures += [f"{name} fails ({str(e).strip()[:80]})" for name, e in failures.items()]
    shapes = f"{list(a.shape)}, {list(b.shape)}, {geometry.tasks} tasks, {geometry.groups} groups"
    logger.info("convolution (%s, %s, %s): %s", kind, shapes, a.dtype, ", ".join(figures))
    if not seconds:
        raise failures["grouped"]
    return min(seconds, key=lambda name: seconds[name])
