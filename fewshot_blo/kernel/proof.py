"""Compares the kernel with the user's module: outputs, first and second derivatives.

In float64, on copies, with a few images of two tasks, whatever the precision of the run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.forward import KernelBackend, TaskForward
from fewshot_blo.kernel.pure_check import check_pure
from fewshot_blo.kernel.purity import NO_WRITES
from fewshot_blo.kernel.reference import ReferenceForward
from fewshot_blo.tasks.inputs import Inputs, each, one_of

Order = Literal["first", "second"]
"""Highest order of a network's derivatives that a strategy needs."""

ForwardCall = Callable[..., Tensor]
"""``(params, shared, x, keys=..., running=...)``, as a ``Forward`` is called."""

TOLERANCE = 1e-8
"""Relative. Rounding errors in float64 are smaller; defects found so far were above 1e-4."""

SINGLE_TOLERANCE = 1e-2
"""The same for networks that cannot run in float64."""

_TASKS, _IMAGES = 2, 6


@dataclass(frozen=True)
class Sample:
    """Parameters and inputs on which forward passes are compared.

    Attributes:
        params: per-task parameters, ``[T, ...]``; may be empty.
        shared: shared parameters, without a task axis.
        x: inputs, ``[T, B, ...]``, as one tensor or by name.
        keys: keys for random numbers, ``[T]``.
        order: highest order of derivatives that is compared; second ones need per-task parameters.
        running: use running statistics.
    """

    params: TaskParams
    shared: Params
    x: Inputs
    keys: Tensor
    order: Order
    running: bool = False

    def small(self, dtype: torch.dtype | None = None) -> Sample:
        """A copy of a few images of two tasks, in another dtype if one is given."""

        def converted(x: Tensor) -> Tensor:
            # A copy: what the network writes to it must not reach the outer variables.
            to = dtype if dtype is not None and x.is_floating_point() else x.dtype
            return x.detach().to(to, copy=True)

        return replace(
            self,
            params={name: converted(p[:_TASKS]) for name, p in self.params.items()},
            shared={name: converted(p) for name, p in self.shared.items()},
            x=each(lambda x: converted(x[:_TASKS, :_IMAGES]), self.x),
            keys=self.keys[:_TASKS],
        )

    def of(self, forward: ForwardCall) -> Tensor:
        """Outputs of a forward pass on the sample."""
        inputs = self.params, self.shared, self.x
        return forward(*inputs, keys=self.keys, running=self.running)

    def jittered(self) -> Sample:
        """The sample with slightly perturbed inputs, so that no values of a pooling window tie."""
        generator = torch.Generator().manual_seed(0)

        def moved(x: Tensor) -> Tensor:
            if not x.is_floating_point():
                return x
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
            return x + 1e-3 * x.std() * noise

        return replace(self, x=each(moved, self.x))

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return one_of(self.x).device


@dataclass(frozen=True)
class Found:
    """Outputs, first and second derivatives of a forward pass, each by name."""

    output: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]


def differentiate(forward: ForwardCall, sample: Sample) -> Found:
    """Runs a forward pass and differentiates a fixed function of its outputs."""
    with torch.enable_grad():
        params = {name: p.detach().requires_grad_() for name, p in sample.params.items()}
        shared = {name: p.detach().requires_grad_() for name, p in sample.shared.items()}
        output = replace(sample, params=params, shared=shared).of(forward)
        found = {"output": output.detach()}
        leaves = {**params, **shared}
        adapted = params or leaves
        if not adapted:
            return Found(found, {}, {})
        wide = output.double()
        value = _weighted([wide]) + 0.1 * _weighted([wide.square()])
        twice = bool(params) and sample.order == "second"
        gradients = torch.autograd.grad(
            value, list(adapted.values()), create_graph=twice, materialize_grads=True
        )
        first = {n: g.detach() for n, g in zip(adapted, gradients, strict=True)}
        if not twice:
            return Found(found, first, {})
        total = _weighted(gradients)
        if not total.requires_grad:
            return Found(found, first, {})
        second = torch.autograd.grad(
            total, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        constants = (g.detach() for g in second)
        return Found(found, first, dict(zip(leaves, constants, strict=True)))


def _weighted(tensors: Sequence[Tensor]) -> Tensor:
    """A sum with distinct weights: in a plain sum of squares, derivatives may cancel."""
    return torch.stack([(x.flatten() * _weights(x.numel(), x)).sum() for x in tensors]).sum() / sum(
        x.numel() for x in tensors
    )


def _weights(count: int, like: Tensor) -> Tensor:
    return torch.arange(1, count + 1, device=like.device, dtype=torch.float64).sin().to(like.dtype)


@dataclass(frozen=True)
class Difference:
    """The largest difference between two forward passes.

    Attributes:
        relative: norm of one tensor's difference, divided by the norm of the reference.
        where: the quantity that differs, in words.
    """

    relative: float
    where: str


def difference(found: Found, reference: Found) -> Difference:
    """The largest one over all tensors; a small tensor is divided by 1e-3 of the largest norm."""
    worst = Difference(0.0, "output")
    for kind, mine, theirs in (
        ("output", found.output, reference.output),
        ("gradient", found.first, reference.first),
        ("second derivative", found.second, reference.second),
    ):
        norms = {name: float(p.detach().norm()) for name, p in theirs.items()}
        least = 1e-3 * max(norms.values(), default=0.0) or 1.0
        for name, theirs_of in theirs.items():
            error = float((mine[name] - theirs_of).detach().norm()) / max(norms[name], least)
            if not error <= worst.relative:
                where = kind if kind == "output" else f"{kind} of '{name}'"
                worst = Difference(error, where)
    return worst


class Proof:
    """Compares forward passes of the kernel with the user's module.

    Args:
        original: the user's module.
        network: the kernel's copy of it.
        sample: parameters and inputs to compare on.

    Raises:
        ConfigurationError: if the module is not a pure function, or has no second derivative in
            PyTorch where one is needed.
    """

    def __init__(self, original: nn.Module, network: nn.Module, sample: Sample) -> None:
        self._original, self._network, self._sample = original, network, sample
        try:
            self._set_up(torch.float64)
            self.tolerance = TOLERANCE
        except RuntimeError as error:
            if "dtype" not in str(error) and "scalar type" not in str(error):
                raise
            # The network fixes its own dtypes, whatever it is converted to.
            self._set_up(next(network.parameters(), one_of(sample.x)).dtype)
            self.tolerance = SINGLE_TOLERANCE

    def _set_up(self, dtype: torch.dtype) -> None:
        self.sample = self._sample.small(dtype)
        self.network = copy.deepcopy(self._network).to(dtype)
        self.reference = ReferenceForward(self._original, self.network)
        with self._unchanged():
            self.found = self._reference_derivatives(self.sample)
        check_pure(self.reference.module, lambda: self.sample.of(self.reference))

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Checks that passes inside write to no parameter through ``.data``.

        That leaves a tensor's version as it is, so values are compared.
        """
        tensors = {
            **dict(self.network.named_parameters()),
            **self.sample.shared,
            **self.sample.params,
        }
        before = {name: p.detach().clone() for name, p in tensors.items()}
        yield
        for name, p in tensors.items():
            if not torch.allclose(p.detach(), before[name], rtol=0, atol=0, equal_nan=True):
                raise ConfigurationError(
                    f"the forward pass of the network modifies its parameter '{name}' through "
                    f".data: {NO_WRITES}; initialise it by the data before the network is passed in"
                )

    def disagreement(self, backend: KernelBackend) -> Difference | None:
        """How a backend differs from the module; None if they agree.

        Raises:
            RuntimeError: if the backend cannot run the network.
        """
        return self.disagreement_of(TaskForward(self.network, backend))

    def disagreement_of(self, forward: ForwardCall) -> Difference | None:
        """The same for any forward pass, in the dtype of ``sample``."""
        found = difference(differentiate(forward, self.sample), self.found)
        if found.relative <= self.tolerance or not _finite(self.found):
            return None
        # If values of a pooling window tie, rounding decides which one gets the gradient.
        moved = self.sample.jittered()
        again = difference(differentiate(forward, moved), self._reference_derivatives(moved))
        return None if again.relative <= self.tolerance else found

    def _reference_derivatives(self, sample: Sample) -> Found:
        try:
            return differentiate(self.reference, sample)
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            if sample.order == "second" and "derivative" in reason:
                raise ConfigurationError(
                    f"the network has no second derivative in PyTorch ({reason}): use a strategy "
                    "that needs none (Unroll with first_order, Reptile, ValueFunction), or write "
                    "that layer in other operations (nn.Hardsigmoid as (x + 3).clamp(0, 6) / 6)"
                ) from error
            raise


def _finite(found: Found) -> bool:
    return all(bool(x.isfinite().all()) for part in vars(found).values() for x in part.values())
