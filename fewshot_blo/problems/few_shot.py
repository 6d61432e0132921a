"""What the few-shot problems have in common: tasks bound to a bilevel problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

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
from fewshot_blo.problems.passes import Adapted, ForwardPass, query_passes
from fewshot_blo.tasks import EpisodicSampler, TaskBatch

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


class FewShotProblem(ABC):
    """A few-shot problem: outer variables, and a bilevel problem for any batch of tasks.

    A problem of your own sets ``network`` and ``outer`` and has a ``bind``; all else has defaults
    that are right for any problem, or that raise where it would have to say more.

    Attributes:
        network: the network that images go through, in which norms and centres are looked for.
        outer: the outer variables by flat name: leaves, changed in place by the outer optimizer.
        backend: of the kernel; "auto" until ``prepare`` has chosen. Of no effect where ``bind``
            does not use it.
        precision: of the network's products.
    """

    network: nn.Module
    outer: Params
    backend: BackendChoice = "loop"
    precision: Precision = "float32"

    @abstractmethod
    def bind(self, batch: TaskBatch, norm: NormMode, keys: Tensor | None = None) -> BoundTasks:
        """The bilevel problem of a batch of tasks.

        A strategy may differentiate the losses more than once. So images go through the network
        inside of the losses and of ``query_logits``; or once before them, their features being
        leaves in ``Bilevel.outer`` of which ``pullback`` carries the gradient on.

        Args:
            batch: T tasks on the problem's device.
            norm: where batch norms take their statistics from on the query set.
            keys: int64 ``[T]``, fix the dropout masks; None draws them from the global generator.
        """

    def prepare(self, batch: TaskBatch, *, derivatives: Order = "second") -> None:
        """Compares the kernel with the user's module, and chooses the backend where it is "auto".

        Nothing by default, for a problem that does without the kernel.

        Args:
            batch: like those to come.
            derivatives: of inner parameters that are needed.
        """
        del batch, derivatives

    def check_suits(self, strategy: Strategy, start: Literal["cold", "warm"]) -> None:
        """Raises where training would do nothing, or not what it says.

        Args:
            strategy: that computes the hypergradients.
            start: whether inner problems start anew at every outer step ("cold"), or from where
                they ended at the one before ("warm").

        Raises:
            ConfigurationError: if there is nothing to learn, or the strategy needs a warm start.
        """
        check_start(strategy, start)
        if not self.outer:
            raise ConfigurationError(
                "no parameter of the encoder requires a gradient and the head, its start and prox "
                "have none that is learned: there is nothing to learn"
            )

    @property
    def embedder(self) -> nn.Module | None:
        """From images ``[B, ...]`` to features ``[B, D]``, for tasks drawn from embeddings.

        None by default: images then go through ``bind`` with each task.
        """
        return None

    def on_features(self) -> FewShotProblem:
        """The same problem on batches that hold what ``embedder`` returns in place of images.

        Raises:
            ConfigurationError: if there is no ``embedder``.
        """
        raise ConfigurationError(
            "embeddings are of a shared encoder's features, and the problem is "
            f"{type(self).__name__}: leave them out"
        )

    def with_views(self, views: Views) -> FewShotProblem:
        """The same problem on means of the features of several views of an image.

        Raises:
            ConfigurationError: if there are no features to average.
        """
        raise ConfigurationError(
            f"views is {views}, and the problem is {type(self).__name__}: features are "
            "averaged over views where a shared encoder has some; use one"
        )

    def statistics_passes(self, tasks: EpisodicSampler, adapted: Adapted) -> Iterator[ForwardPass]:
        """Forward passes in which batch norms meet training images as they meet those of tests.

        By default those of ``query_logits`` of tasks that have been adapted to, one by one, with
        the backend "loop": norms cannot be watched under ``torch.func.vmap``.

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
    """Keys for a comparison, ``[T]``, which leave the global generator alone."""
    return torch.arange(batch.tasks, device=batch.support_y.device)


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
