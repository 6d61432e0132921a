"""``FewShotProblem``, the interface of few-shot problems, and forward passes in each norm mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import Bilevel, Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.hypergrad.strategy import check_start
from fewshot_blo.kernel import BackendChoice, Forward, Order
from fewshot_blo.kernel.layers import NO_ROWS, fold
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.kernel.statistics import has_statistics, uses_batch_statistics
from fewshot_blo.networks.views import Views
from fewshot_blo.objectives import Accuracy, CrossEntropy, Metric
from fewshot_blo.problems.passes import Adapted, ForwardPass, query_passes
from fewshot_blo.tasks import TaskBatch, TaskSource
from fewshot_blo.tasks.inputs import joined

NormMode = Literal["transductive", "support", "running"]
"""Source of the batch norm statistics with which the query set is classified.

"transductive": the query set itself, as in MAML's code. The inductive modes are "support", the
task's support set, and "running", running statistics of the meta-training images: their
prediction for one query does not depend on the other queries. The inner steps of an
initialization use the statistics of the support set in every mode, as in training.
"""


@dataclass(frozen=True)
class BoundTasks:
    """The bilevel problem of one batch of tasks, for one hypergradient.

    Differentiating it frees the graphs of its initial parameters and features.

    Attributes:
        bilevel: the problem as strategies see it.
        query_outputs: from inner parameters to the outputs ``[T, B, ...]`` on the query set; logits
            ``[T, N*Q, N]`` of tasks with classes.
        pullback: vector-Jacobian product from the gradient with respect to ``bilevel.outer`` to
            that with respect to the few-shot problem's outer variables; call it at most once.
    """

    bilevel: Bilevel
    query_outputs: Callable[[TaskParams], Tensor]
    pullback: Callable[[Params], Params]


class FewShotProblem(ABC):
    """A few-shot problem: outer variables, and a bilevel problem for any batch of tasks.

    A subclass sets ``network`` and ``outer`` and implements ``bind``. The other methods have
    defaults that are correct for any problem, or that raise if the problem does not support them.

    Attributes:
        network: network applied to the images; holds running statistics and centres.
        outer: outer variables by flat name: leaf tensors that the optimizer updates in place.
        loss: loss of outputs and targets.
        metric: what validation measures, and the best variables are chosen by.
        backend: backend of the kernel; "auto" until ``prepare`` has chosen. Has no effect if
            ``bind`` does not use it.
        precision: precision of the network's matrix products and convolutions.
        rows_mix: whether ``prepare`` has seen that outputs of a row depend on the other rows of a
            batch, other than by the statistics of batch norms: predictions are then transductive in
            every norm mode.
    """

    network: nn.Module
    loss: Metric = CrossEntropy()
    metric: Metric = Accuracy()
    backend: BackendChoice = "loop"
    precision: Precision = "float32"

    @property
    def rows_mix(self) -> bool:
        """False by default."""
        return False

    if TYPE_CHECKING:  # An attribute that problems may declare with a narrower type.

        @property
        def outer(self) -> Params: ...
        @outer.setter
        def outer(self, outer: Any) -> None: ...

    @abstractmethod
    def bind(self, batch: TaskBatch, norm: NormMode, keys: Tensor | None = None) -> BoundTasks:
        """The bilevel problem of a batch of tasks.

        A strategy may differentiate the losses more than once. Therefore images go through the
        network either inside the losses and ``query_outputs``, or once before them: the features
        are then leaves in ``Bilevel.outer``, whose gradient ``pullback`` backpropagates.

        Args:
            batch: T tasks on the problem's device.
            norm: source of the batch norm statistics on the query set.
            keys: keys of the dropout masks, int64 ``[T]``; None draws them from the global
                generator.
        """

    def prepare(self, batch: TaskBatch, *, derivatives: Order = "second") -> None:
        """Compares the kernel with the user's module, and chooses the backend if it is "auto".

        Does nothing by default, for problems that do not use the kernel.

        Args:
            batch: tasks of the same shape and kind as those to follow.
            derivatives: highest order of derivatives of the inner parameters that is needed.
        """
        del batch, derivatives

    def check_suits(self, strategy: Strategy, start: Literal["cold", "warm"]) -> None:
        """Checks that a strategy can train this problem.

        Args:
            strategy: strategy that computes the hypergradients.
            start: "cold" if inner problems start from ``inner_init`` at every outer step, "warm"
                if from the inner parameters of the previous step.

        Raises:
            ConfigurationError: if there is nothing to learn, or the strategy needs a warm start.
        """
        check_start(strategy, start)
        if not self.outer:
            raise ConfigurationError(
                "there is nothing to learn: no parameter of the network requires a gradient, and "
                "no head, start or prox is learned; unfreeze parameters or learn one of these"
            )

    @property
    def embedder(self) -> nn.Module | None:
        """Network from images ``[B, ...]`` to features ``[B, D]``, to draw tasks from embeddings.

        None by default: images then go through ``bind`` with each task.
        """
        return None

    def on_features(self) -> FewShotProblem:
        """The same problem on batches with outputs of ``embedder`` in place of images.

        Raises:
            ConfigurationError: if there is no ``embedder``.
        """
        raise ConfigurationError(
            f"embeddings are given, but the problem is {type(self).__name__}: they need a shared "
            "encoder; leave them out"
        )

    def with_views(self, views: Views) -> FewShotProblem:
        """The same problem with features averaged over several views of an image.

        Raises:
            ConfigurationError: if there are no features to average.
        """
        raise ConfigurationError(
            f"views is {views}, but the problem is {type(self).__name__}: several views need a "
            "shared encoder, whose features are averaged; set views to one"
        )

    def statistics_passes(self, tasks: TaskSource, adapted: Adapted) -> Iterator[ForwardPass]:
        """Forward passes on training images from which running statistics are estimated.

        By default ``query_outputs`` of adapted tasks, one task at a time, with the backend "loop":
        forward hooks cannot read statistics under ``torch.func.vmap``.

        Args:
            tasks: training tasks without augmentation.
            adapted: adapts to the tasks of a batch.
        """
        backend, self.backend = self.backend, "loop"
        try:
            yield from query_passes(tasks, adapted)
        finally:
            self.backend = backend


def first_keys(batch: TaskBatch) -> Tensor:
    """Dropout keys ``[T]`` for comparisons, without a draw from the global generator."""
    return torch.arange(batch.tasks, device=batch.support_y.device)


def norm_modes(problem: FewShotProblem) -> tuple[NormMode, ...]:
    """The norm modes whose results differ.

    "support" alone if no layer uses batch statistics, or "transductive" if the network was seen to
    mix rows in another way; "running" only if running statistics have been estimated.
    """
    if not uses_batch_statistics(problem.network) and problem.rows_mix:
        return ("transductive",)
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
    """Outputs ``[T, N*Q, ...]`` on the query set, with batch statistics by norm mode."""
    if norm == "running":
        return forward(params, shared, batch.query_x, running=True, keys=keys)
    if norm == "transductive" or not uses_batch_statistics(forward.network):
        rows = NO_ROWS if norm == "support" else real_rows(batch, batch.query_rows)
        return forward(params, shared, batch.query_x, rows=rows, keys=keys)
    return joint_forward(forward, params, shared, batch, keys)[1]


def joint_forward(
    forward: Forward, params: TaskParams, shared: Params, batch: TaskBatch, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs on the support and the query set, with batch statistics of the support set."""
    size = batch.support_y.shape[1]
    rows: Tensor | int = size
    if batch.padded:
        rows = torch.cat([batch.support_rows, torch.zeros_like(batch.query_rows)], 1)
    both = joined(batch.support_x, batch.query_x, dim=1)
    outputs = forward(params, shared, both, rows=rows, keys=keys)
    return outputs[:, :size], outputs[:, size:]


def task_keys(batch: TaskBatch, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """Dropout keys ``[T]`` of the support pass and of the query pass."""
    if keys is None:
        keys = torch.randint(1 << 62, (batch.tasks,)).to(batch.support_y.device)
    return fold(keys, 0), fold(keys, 1)


def real_rows(batch: TaskBatch, rows: Tensor) -> Tensor | None:
    """Mask ``[T, B]`` that excludes padded rows from batch statistics; None without padding.

    Args:
        batch: the tasks.
        rows: their ``support_rows`` or ``query_rows``.
    """
    return rows if batch.padded else None
