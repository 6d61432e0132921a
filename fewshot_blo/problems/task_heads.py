"""``TaskHeads``: the heads of a batch of tasks on its features, their start, losses and logits."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_blo.bilevel import TaskParams, task_dot
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.head import Head, Start, SupportSet, has_class_axis
from fewshot_blo.kernel.outer_variables import OuterVariables
from fewshot_blo.objectives.tasks import need_classes
from fewshot_blo.problems.few_shot import real_rows
from fewshot_blo.tasks import TaskBatch


class TaskHeads:
    """T heads, one per task.

    Args:
        head: type of the heads.
        start: initial parameters of the inner problems.
        prox: weight of the proximal term, if it is not learned.
        outer: outer variables of the bilevel problem, without the encoder's.
        features: features ``[T, N*K + N*Q, D]`` of the support and query sets, a leaf. One leaf
            instead of two: for some strategies, the support features alone are in neither loss.
        batch: the tasks.

    Attributes:
        initial: initial inner parameters, ``[T, ...]``.
    """

    def __init__(
        self,
        head: Head,
        start: Start,
        prox: float,
        outer: OuterVariables,
        features: Tensor,
        batch: TaskBatch,
    ) -> None:
        name = type(head).__name__
        if head.needs_classes:
            need_classes(batch, name, "use RidgeRegressionHead or LinearRegressionHead")
        elif batch.way:
            raise ConfigurationError(
                f"{name} is for tasks without classes, and these have {batch.way}: use a head of "
                "classes, as Ridge or Linear"
            )
        self.head, self.prox, self.outer = head, prox, outer
        self.features, self.batch = features, batch
        sizes = [batch.support_y.shape[1], batch.query_y.shape[1]]
        support, self._query = torch.split(features, sizes, 1)
        rows = batch.support_rows
        self._support = SupportSet(support, batch.support_y, batch.classes, rows)
        self.initial = self._start(start)

    def _start(self, start: Start) -> TaskParams:
        tasks, way = self._support.real_classes.shape
        if start in ("prototypes", "closed_form"):
            return self.head.from_support(self._support, self.outer.head)
        if start == "zeros":
            return self.head.zeros(tasks, way, self._support.features)
        return {name: p.expand(tasks, *p.shape) for name, p in self.outer.start.items()}

    def inner_loss(self, v: TaskParams) -> Tensor:
        """G_t, ``[T]``: the head's loss on the support set plus the proximal term."""
        loss = self.head.loss(v, self._support, self.outer.head)
        if self.prox == 0:
            return loss
        learned = self.outer.regularisation
        prox = self.prox if learned is None else learned.exp()
        real = self._support.real_classes.to(self.features.dtype)
        distance = {name: p - self.initial[name] for name, p in v.items()}
        for name in distance:
            if has_class_axis(name):  # Weights of padded classes do not count.
                mask = real.reshape(*real.shape, *[1] * (distance[name].ndim - 2))
                distance[name] = distance[name] * mask
        return loss + 0.5 * prox * task_dot(distance, distance)

    def query_outputs(self, v: TaskParams) -> Tensor:
        """Logits, or other outputs, of the query set, ``[T, N*Q, N]``."""
        real = real_rows(self.batch, self.batch.query_rows)
        return self.head.logits(v, self._query, self.outer.head, real)


def check_head(head: Head, start: Start, prox: float, *, learn_prox: bool, unit: bool) -> None:
    """Raises ``ConfigurationError`` if a head does not support these settings."""
    if learn_prox and prox == 0:
        raise ConfigurationError(
            "prox is 0: it must be above 0 with learn_prox, because its logarithm is learned"
        )
    if unit and not head.scaled:
        raise ConfigurationError(
            f"{type(head).__name__} scales features by a unit setting of its own: set that one"
        )
    if start not in head.starts:
        raise ConfigurationError(
            f"{type(head).__name__} cannot start from '{start}': use one of "
            f"{', '.join(head.starts)}"
        )


def learned_start(
    head: Head, example: Tensor, way: int | None, features: int | None
) -> dict[str, Tensor]:
    """Learned initial parameters of a head: outer variables, drawn from N(0, 0.01²).

    Args:
        head: head of the tasks.
        example: a tensor with the dtype and device of the result.
        way: N, number of classes in a task.
        features: D, number of features.

    Raises:
        ConfigurationError: if ``way`` or ``features`` is None.
    """
    if way is None or features is None:
        raise ConfigurationError(
            f"way is {way} and features is {features}: a learned start needs both"
        )
    zeros = head.zeros(1, way, example.new_zeros(1, 1, features))
    return {
        name: (0.01 * torch.randn_like(p[0])).detach().requires_grad_() for name, p in zeros.items()
    }
