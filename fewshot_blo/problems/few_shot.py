"""What the few-shot problems have in common: tasks bound to a bilevel problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import Bilevel, Params, TaskParams
from fewshot_blo.kernel import BackendChoice, Choice, Forward, Order, Sample
from fewshot_blo.kernel.layers import NO_ROWS, fold
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.kernel.statistics import has_statistics, uses_batch_statistics
from fewshot_blo.tasks import TaskBatch

NormMode = Literal["transductive", "support", "running"]
"""Where batch norms take their statistics from when the query set is classified.

"transductive": from the query set, as the code of MAML does. The inductive modes are "support",
from the task's support set, and "running", from estimates over the meta-training images; their
result for one query does not depend on the others. Inner steps of an initialization take their
support set's in every mode, as in training.
"""


@dataclass(frozen=True)
class BoundTasks:
    """A bilevel problem over the tasks of one batch, for one hypergradient.

    Differentiating it frees the graphs that its start and its features come from.

    Attributes:
        bilevel: the problem as a strategy sees it.
        query_logits: logits ``[T, N*Q, N]`` of the query set under inner parameters.
        pullback: from a gradient with respect to ``bilevel.outer`` to the gradient with respect
            to the few-shot problem's outer variables; call it at most once.
    """

    bilevel: Bilevel
    query_logits: Callable[[TaskParams], Tensor]
    pullback: Callable[[Params], Params]


class FewShotProblem(Protocol):
    """A few-shot problem: outer variables, and a bilevel problem for any batch of tasks.

    Attributes:
        original: the network as the user handed it over.
        network: the kernel's copy of it.
        outer: the outer variables: leaves, changed in place by the outer optimizer.
        backend: of the kernel; "auto" until ``prepare`` has chosen.
        precision: of the network's products.
    """

    original: nn.Module
    network: nn.Module
    outer: dict[str, Tensor]
    backend: BackendChoice
    precision: Precision

    def prepare(self, batch: TaskBatch, *, derivatives: Order = "second") -> None:
        """Compares the kernel with the user's module, and chooses the backend where it is "auto".

        Args:
            batch: like those to come.
            derivatives: of inner parameters that are needed.
        """
        ...

    def bind(self, batch: TaskBatch, norm: NormMode, keys: Tensor | None = None) -> BoundTasks:
        """The bilevel problem of a batch of tasks.

        Args:
            batch: T tasks on the problem's device.
            norm: where batch norms take their statistics from on the query set.
            keys: int64 ``[T]``, fix the dropout masks; None draws them from the global generator.
        """
        ...


def first_keys(batch: TaskBatch) -> Tensor:
    """Keys for a comparison, ``[T]``, which leave the global generator alone."""
    return torch.arange(batch.tasks, device=batch.support_y.device)


class FirstBatch:
    """Chooses a problem's backend at its first batch, once for each order of derivatives.

    Args:
        prove: compare the kernel with the user's module.
    """

    def __init__(self, prove: bool) -> None:
        self._prove = prove
        self._proved: set[Order] = set()

    def __call__(
        self, problem: FewShotProblem, sample: Callable[[], Sample], derivatives: Order
    ) -> None:
        """Sets the problem's backend.

        Args:
            problem: changed in place.
            sample: where it is compared and timed.
            derivatives: that are needed.

        Raises:
            ConfigurationError: as ``Choice``.
        """
        proved = not self._prove or bool({derivatives, "second"} & self._proved)
        if problem.backend != "auto" and proved:
            return
        choose = Choice(problem.original, problem.network, problem.precision, prove=not proved)
        problem.backend = choose(problem.backend, sample())
        self._proved.add(derivatives)


def norm_modes(problem: FewShotProblem) -> tuple[NormMode, ...]:
    """The norm modes that differ: one where no layer depends on the batch, and "running" only
    where running statistics have been estimated."""
    if not uses_batch_statistics(problem.network):
        return ("support",)
    modes: tuple[NormMode, ...] = ("transductive", "support")
    return (*modes, "running") if has_statistics(problem.network) else modes


def query_forward(
    forward: Forward,
    params: TaskParams,
    shared: Params,
    batch: TaskBatch,
    norm: NormMode,
    keys: Tensor,
) -> Tensor:
    """Outputs ``[T, N*Q, ...]`` of the query set, batch norms following the norm mode."""
    if norm == "running":
        return forward(params, shared, batch.query_x, running=True, keys=keys)
    if norm == "transductive" or not uses_batch_statistics(forward.network):
        rows = NO_ROWS if norm == "support" else real_rows(batch, batch.query_y)
        return forward(params, shared, batch.query_x, rows=rows, keys=keys)
    return joint_forward(forward, params, shared, batch, keys)[1]


def joint_forward(
    forward: Forward, params: TaskParams, shared: Params, batch: TaskBatch, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs of the support and of the query set with batch statistics of the support set."""
    size = batch.support_y.shape[1]
    rows: Tensor | int = size
    if batch.padded:
        outside = torch.zeros_like(batch.query_y, dtype=torch.bool)
        rows = torch.cat([batch.support_y >= 0, outside], 1)
    images = torch.cat([batch.support_x, batch.query_x], 1)
    outputs = forward(params, shared, images, rows=rows, keys=keys)
    return outputs[:, :size], outputs[:, size:]


def task_keys(batch: TaskBatch, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """Dropout keys of the support and of the query pass, ``[T]`` each."""
    if keys is None:
        keys = torch.randint(1 << 62, (batch.tasks,)).to(batch.support_y.device)
    return fold(keys, 0), fold(keys, 1)


def real_rows(batch: TaskBatch, labels: Tensor) -> Tensor | None:
    """Weights ``[T, B]`` that leave padded rows out of batch statistics; None without padding.

    Args:
        batch: the tasks.
        labels: those of their support or of their query set.
    """
    return labels >= 0 if batch.padded else None
