"""Learning an initialisation from which a few steps solve a new task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from fewshot_blo.bilevel import Bilevel, TaskParams, task_dot
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel import Backend, TaskForward, for_tasks, measure_backend
from fewshot_blo.kernel.precision import Precision, check_precision
from fewshot_blo.kernel.rules import STEP_SIZE
from fewshot_blo.networks.losses import task_cross_entropy
from fewshot_blo.problems.few_shot import (
    BoundTasks,
    NormMode,
    query_forward,
    real_rows,
    task_keys,
)
from tasks import TaskBatch


class Initialization:
    """outer θ: a network's initial parameters; inner φ_t: those parameters after adaptation.

    ``F_t = CE(query; φ)`` and ``G_t = CE(support; φ) + prox/2 |φ - θ|²``, from ``φ = θ``.
    Without a proximal term θ is in neither loss, and only Unroll has a hypergradient.

    Source: MAML (arXiv 1703.03400); with the proximal term iMAML (arXiv 1909.04630); ANIL
    (arXiv 1909.09157) adapts ``("head.",)`` only, BOIL (arXiv 2008.08882) ``("encoder.",)``.

    Args:
        network: any module from images to logits; it is copied. Frozen parameters
            (``requires_grad`` false) stay as they are.
        prox: weight of the proximal term.
        adapted: prefix or prefixes of the names of the parameters that adapt to a task; the
            others are outer variables that all tasks share.
        step_size: where given, step sizes are learned from this value on, for the rule
            ``LearnedSGD``: one for each adapted parameter tensor.
        entry_steps: one for each entry of it, as in Meta-SGD.
        own_steps: one for each of so many inner steps, as in MAML++, for its ``per_step``.
        backend: of the kernel; "auto" measures at the first batch.
        precision: of the network's products.

    Raises:
        ConfigurationError: if no parameter adapts, ``prox`` or ``own_steps`` is negative, or the
            parameters' device or dtype does not offer the precision.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        prox: float = 0.0,
        adapted: str | Sequence[str] = "",
        step_size: float | None = None,
        entry_steps: bool = False,
        own_steps: int = 0,
        backend: Backend | Literal["auto"] = "auto",
        precision: Precision = "float32",
    ) -> None:
        if prox < 0:
            raise ConfigurationError(f"prox is {prox}: a proximal weight is zero or positive")
        if own_steps < 0:
            raise ConfigurationError(f"own_steps is {own_steps}: it is a number of inner steps")
        self.network = for_tasks(network)
        self.prox = prox
        self.backend = backend
        self.precision = precision
        self.outer: dict[str, Tensor] = {
            name: p for name, p in self.network.named_parameters() if p.requires_grad
        }
        prefixes = (adapted,) if isinstance(adapted, str) else tuple(adapted)
        self.adapted = [name for name in self.outer if name.startswith(prefixes)]
        if not self.adapted:
            raise ConfigurationError(
                f"no trainable parameter has a name that starts with {prefixes}; the "
                f"network's are {list(self.outer)[:8]}"
            )
        check_precision(precision, self.outer[self.adapted[0]])
        if step_size is not None:
            for name in self.adapted:
                entries = self.outer[name].shape if entry_steps else ()
                shape = ((own_steps,) if own_steps else ()) + tuple(entries)
                size = self.outer[name].new_full(shape, step_size)
                self.outer[STEP_SIZE + name] = size.requires_grad_()

    def prepare(self, batch: TaskBatch) -> None:
        """Measures which backend is faster for batches like this one, where it is "auto"."""
        if self.backend == "auto":
            tasks = batch[: min(batch.tasks, 4)]
            params = {name: p.detach() for name, p in self._start(tasks.tasks).items()}
            self.backend = measure_backend(
                self.network, params, self._shared(), tasks.support_x, self.precision
            )

    def bind(self, batch: TaskBatch, norm: NormMode, keys: Tensor | None = None) -> BoundTasks:
        """The bilevel problem of a batch of tasks.

        Raises:
            ConfigurationError: if the backend has not been chosen.
        """
        if self.backend == "auto":
            raise ConfigurationError("the backend is not chosen yet: call prepare(batch) first")
        forward = TaskForward(self.network, self.backend, self.precision)
        shared = self._shared()
        theta = {name: self.outer[name] for name in self.adapted}
        support_rows = real_rows(batch, batch.support_y)
        support_keys, query_keys = task_keys(batch, keys)

        def inner_loss(phi: TaskParams) -> Tensor:
            logits = forward(phi, shared, batch.support_x, rows=support_rows, keys=support_keys)
            loss = task_cross_entropy(logits, batch.support_y, batch.classes)
            if self.prox == 0:
                return loss
            distance = {name: p - theta[name] for name, p in phi.items()}
            return loss + 0.5 * self.prox * task_dot(distance, distance)

        def query_logits(phi: TaskParams) -> Tensor:
            return query_forward(forward, phi, shared, batch, norm, query_keys)

        def outer_loss(phi: TaskParams) -> Tensor:
            return task_cross_entropy(query_logits(phi), batch.query_y, batch.classes)

        bilevel = Bilevel(self.outer, self._start(batch.tasks), inner_loss, outer_loss)
        return BoundTasks(bilevel, query_logits, pullback=lambda gradient: gradient)

    def _start(self, tasks: int) -> TaskParams:
        """θ for every task, ``[T, ...]``, as views that pass gradients on."""
        return {n: self.outer[n].expand(tasks, *self.outer[n].shape) for n in self.adapted}

    def _shared(self) -> dict[str, Tensor]:
        names = dict(self.network.named_parameters())
        return {n: p for n, p in self.outer.items() if n in names and n not in self.adapted}
