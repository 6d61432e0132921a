"""Chooses a network's backend: the fastest of those that agree with the user's module."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

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
"""The loop is chosen if it takes less than this fraction of the batched time: its relative cost
grows with more tasks than the few that are timed."""


def make_forward(
    original: nn.Module, network: nn.Module, backend: BackendChoice, precision: Precision
) -> Forward:
    """The forward pass of a network for T tasks.

    Args:
        original: the user's module.
        network: the kernel's copy of it.
        backend: the backend to use, not "auto".
        precision: number format of the forward pass.

    Raises:
        ConfigurationError: if the backend is "auto".
    """
    if backend == "auto":
        raise ConfigurationError("the backend is not chosen yet: call prepare(batch) first")
    if backend == "reference":
        return ReferenceForward(original, network, precision)
    return TaskForward(network, backend, precision)


@dataclass(frozen=True)
class Choice:
    """Chooses a backend by comparison with the user's module and by timing.

    Attributes:
        original: the user's module.
        network: the kernel's copy of it; layers that disagree with the module get PyTorch's own
            class back.
        precision: number format of the run.
        prove: whether to compare with the module.
    """

    original: nn.Module
    network: nn.Module
    precision: Precision = "float32"
    prove: bool = True

    def __call__(self, wanted: BackendChoice, sample: Sample) -> Backend:
        """The backend for this network and device.

        One warning names what disagrees with the module and what replaces it.

        Args:
            wanted: "auto", or the backend to use if it agrees with the module.
            sample: parameters and inputs of the shapes that will be used.

        Raises:
            ConfigurationError: if the network cannot be run, or the wanted backend disagrees.
        """
        if wanted == "reference":
            return wanted
        if wanted == "fused" and "fused" not in self._candidates(sample.device):
            wanted = "batched"  # They are the same without Triton kernels.
        device = sample.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), product_precision("float32", device):
            right: list[Backend] = [*self._candidates(sample.device)]
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
        for backend in self._candidates(sample.device):
            if wanted not in ("auto", backend):
                continue
            reason = self._reason_against(proof, backend)
            if reason is None:
                right.append(backend)
                continue
            reasons.append(reason)
            if wanted != "auto":
                raise ConfigurationError(
                    f"backend is {wanted}, and {self._name} {reason}: use auto, which picks another"
                )
        right = right or ["reference"]
        if reasons and right[0] in ("loop", "reference"):
            self._tell(reasons, right[0])
        elif reasons:
            logger.info("%s %s", self._name, "; ".join(reasons))
        seconds = time.perf_counter() - start
        logger.info("compared with a plain loop over your module in %.2f s: %s", seconds, right)
        return right

    def _candidates(self, device: torch.device) -> tuple[KernelBackend, ...]:
        """The available backends, the usually faster ones first.

        Without the Triton kernels in bfloat16, where they have not been checked on a device.
        """
        exact = self.precision != "bfloat16"
        fused = exact and device.type == "cuda" and not kernels_for(device).reason
        return ("fused", "batched", "loop") if fused else ("batched", "loop")

    def _reason_against(self, proof: Proof, backend: KernelBackend) -> str | None:
        """Why a backend cannot be used; None if it can, perhaps with some layers unconverted."""
        if backend != "loop" and (names := _with_backward_hooks(self.network)):
            return f"has backward hooks on {names[0]}, which are not called when tasks are batched"
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
            f"differs from a plain loop over tasks when they are {_WORDS[backend]} (relative error "
            f"{found.relative:.1e} of the {found.where})"
        )

    def _unconverted(self, proof: Proof, backend: KernelBackend) -> bool:
        """Gives layers PyTorch's own class back, one by one, until the backend agrees."""
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
                    f"{', '.join(map(repr, changed))}: the kernel's give different results",
                    stacklevel=6,
                )
                return True
        for module, kind in classes.items():
            module.__class__ = kind
        return False

    def _fastest(self, sample: Sample, backends: list[KernelBackend]) -> Backend:
        seconds = dict.fromkeys(backends, float("inf"))
        reasons: dict[Backend, str] = {}
        for _ in range(2):  # Alternating: a load on the machine then affects all backends.
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
        logger.info("backend %s for %s on %s: %s", chosen, self._name, sample.device, times)
        return chosen

    def _tell_changes(self, proof: Proof) -> None:
        if names := sorted(proof.reference.changed):
            listed = ", ".join(map(repr, names[:4])) + (", ..." if len(names) > 4 else "")
            warnings.warn(
                f"the forward pass of {self._name} modifies {listed}: every pass starts from the "
                "values that the network was passed in with, and changes are discarded",
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
    return best_seconds(lambda: differentiate(forward, sample), sample.device)


def _with_backward_hooks(network: nn.Module) -> list[str]:
    return [
        f"'{name}'" if name else "the network"
        for name, module in network.named_modules()
        if module._backward_hooks or module._backward_pre_hooks
    ]
