"""Choosing the kernel's backend for a user's network: what is right first, then what is faster."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.conversion import unconvert
from fewshot_blo.kernel.forward import Backend, Forward, KernelBackend, TaskForward
from fewshot_blo.kernel.precision import Precision, product_precision
from fewshot_blo.kernel.proof import Proof, Sample, differentiate
from fewshot_blo.kernel.reference import ReferenceForward
from fewshot_blo.kernel.stacked.fused.device import kernels_for
from fewshot_blo.machine.timing import best_seconds

logger = logging.getLogger(__name__)

BackendChoice = Backend | Literal["auto"]

_CLEARLY = 0.8
"""The loop is chosen where it takes less than this part of the batched time: it falls behind with
more tasks than the few that are measured."""


def make_forward(
    original: nn.Module, network: nn.Module, backend: BackendChoice, precision: Precision
) -> Forward:
    """The forward pass of a network for tasks.

    Args:
        original: the user's module.
        network: the kernel's copy of it.
        backend: as chosen.
        precision: of the forward pass.

    Raises:
        ConfigurationError: if the backend has not been chosen.
    """
    if backend == "auto":
        raise ConfigurationError("the backend is not chosen yet: call prepare(batch) first")
    if backend == "reference":
        return ReferenceForward(original, network, precision)
    return TaskForward(network, backend, precision)


@dataclass(frozen=True)
class Choice:
    """Chooses a backend, by comparison with the user's module and by timing.

    Attributes:
        original: the user's module.
        network: the kernel's copy of it, in which layers get PyTorch's own class back where they
            do not compute what the module does.
        precision: that will be used.
        prove: compare at all.
    """

    original: nn.Module
    network: nn.Module
    precision: Precision = "float32"
    prove: bool = True

    def __call__(self, wanted: BackendChoice, sample: Sample) -> Backend:
        """The backend for this network and device.

        Whatever is not as wanted, or differs from the module, is said in one warning.

        Args:
            wanted: "auto", or the one to use if it is right.
            sample: of the shape that will be used.

        Raises:
            ConfigurationError: if the network cannot be used, or not by the wanted backend.
        """
        if wanted == "reference":
            return wanted
        if wanted == "fused" and "fused" not in self._candidates(sample.x):
            wanted = "batched"  # The same where there are no Triton kernels.
        device = sample.x.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), product_precision("float32", device):
            right: list[Backend] = [*self._candidates(sample.x)]
            if self.prove:
                right = self._right(wanted, sample)
        if wanted != "auto":
            return wanted
        if len(right) == 1:
            return right[0]
        with torch.random.fork_rng(devices), product_precision(self.precision, device):
            return self._fastest(sample, [name for name in right if name != "reference"])

    def _right(self, wanted: BackendChoice, sample: Sample) -> list[Backend]:
        start = time.perf_counter()
        proof = Proof(self.original, self.network, sample)
        self._tell_changes(proof)
        right: list[Backend] = []
        reasons = []
        for backend in self._candidates(sample.x):
            if wanted not in ("auto", backend):
                continue
            reason = self._reason_against(proof, backend)
            if reason is None:
                right.append(backend)
                continue
            reasons.append(reason)
            if wanted != "auto":
                raise ConfigurationError(
                    f"backend is {wanted}, and {self._name} {reason}: use auto, which takes another"
                )
        right = right or ["reference"]
        if reasons and right[0] in ("loop", "reference"):
            self._tell(reasons, right[0])
        elif reasons:
            logger.info("%s %s", self._name, "; ".join(reasons))
        seconds = time.perf_counter() - start
        logger.info("compared with a plain loop over your module in %.2f s: %s", seconds, right)
        return right

    def _candidates(self, x: Tensor) -> tuple[KernelBackend, ...]:
        """The backends that there are, those that are usually faster first.

        In bfloat16 the Triton kernels have not been checked on a device.
        """
        exact = self.precision != "bfloat16"
        fused = exact and x.device.type == "cuda" and not kernels_for(x.device).reason
        return ("fused", "batched", "loop") if fused else ("batched", "loop")

    def _reason_against(self, proof: Proof, backend: KernelBackend) -> str | None:
        """Why a backend cannot be used, layers being given back their own class first."""
        if backend != "loop" and (names := _with_backward_hooks(self.network)):
            return (
                f"has hooks on the backward pass of {names[0]}, which are not called where tasks "
                "are batched"
            )
        try:
            found = proof.disagreement(backend)
        except Exception as error:  # Triton's are of many classes.
            if backend == "loop":
                raise
            return _not_batched(error)
        if found is None:
            return None
        if backend != "fused" and self._unconverted(proof, backend):
            return None
        return (
            f"differs from a plain loop over tasks where they are {_WORDS[backend]}, by "
            f"{found.relative:.1e} of the {found.where}"
        )

    def _unconverted(self, proof: Proof, backend: KernelBackend) -> bool:
        """Gives layers PyTorch's own class back, one by one, until the backend is right."""
        classes = {module: type(module) for module in proof.network.modules()}
        changed = []
        for name, _ in proof.network.named_modules():
            if not unconvert(proof.network, name):
                continue
            changed.append(name)
            if proof.disagreement(backend) is None:
                for one in changed:
                    unconvert(self.network, one)
                warnings.warn(
                    f"{self._name} is computed by PyTorch's own operations in "
                    f"{', '.join(map(repr, changed))}: the kernel's differ there",
                    stacklevel=6,
                )
                return True
        for module, kind in classes.items():
            module.__class__ = kind
        return False

    def _fastest(self, sample: Sample, backends: list[KernelBackend]) -> Backend:
        seconds = dict.fromkeys(backends, float("inf"))
        reasons: dict[Backend, str] = {}
        for _ in range(2):  # In turns, for a machine may be busy with something else for a while.
            for backend in backends:
                forward = TaskForward(self.network, backend, self.precision)
                try:
                    seconds[backend] = min(seconds[backend], _seconds(forward, sample))
                except Exception as error:
                    if backend == "loop" or (self.prove and backend == "batched"):
                        raise
                    reasons[backend] = _not_batched(error)
        if "batched" in reasons:
            self._tell([reasons["batched"]], "loop")
            return "loop"
        chosen: KernelBackend = min((b for b in backends if b != "loop"), key=lambda b: seconds[b])
        if seconds.get("loop", float("inf")) < _CLEARLY * seconds[chosen]:
            chosen = "loop"
        times = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items())
        logger.info("backend %s for %s on %s: %s", chosen, self._name, sample.x.device, times)
        return chosen

    def _tell_changes(self, proof: Proof) -> None:
        if names := sorted(proof.reference.changed):
            listed = ", ".join(map(repr, names[:4])) + (", ..." if len(names) > 4 else "")
            warnings.warn(
                f"the forward pass of {self._name} changes {listed}: every pass starts from the "
                "values that the network was handed over with, and changes are not kept",
                stacklevel=5,
            )

    def _tell(self, reasons: list[str], backend: Backend) -> None:
        own = " in your own module" if backend == "reference" else ""
        warnings.warn(
            f"{self._name} {'; '.join(reasons)}: tasks run one after another{own} ({backend} "
            "backend)",
            stacklevel=6,
        )

    @property
    def _name(self) -> str:
        return type(self.original).__name__


def _not_batched(error: Exception) -> str:
    return f"cannot be batched over tasks ({str(error).strip().splitlines()[0]})"


_WORDS = {
    "loop": "run one after another",
    "batched": "batched",
    "fused": "batched with fused Triton kernels",
}


def _seconds(forward: TaskForward, sample: Sample) -> float:
    return best_seconds(lambda: differentiate(forward, sample), sample.x.device)


def _with_backward_hooks(network: nn.Module) -> list[str]:
    return [
        f"'{name}'" if name else "the network"
        for name, module in network.named_modules()
        if module._backward_hooks or module._backward_pre_hooks
    ]
