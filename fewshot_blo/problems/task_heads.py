"""The heads of a batch of tasks on its features: where they start, their losses and logits."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_blo.bilevel import OuterVariables, TaskParams, task_dot
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.head import Head, Start, SupportSet, has_class_axis
from fewshot_blo.problems.few_shot import real_rows
from fewshot_blo.tasks import TaskBatch


class TaskHeads:
    """T heads, a task each.

    Args:
        head: what each is.
        start: where its inner problem starts.
        prox: weight of the proximal term, where none is learned.
        outer: the outer variables of the bilevel problem, all but the encoder's.
        features: of the support and then the query sets, ``[T, B, D]``, a leaf. One leaf, not two:
            for some strategies the support features alone are in neither loss.
        batch: the tasks.

    Attributes:
        initial: where the inner problems start.
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
        self.head, self.prox, self.outer = head, prox, outer
        self.features, self.batch = features, batch
        sizes = [batch.support_y.shape[1], batch.query_y.shape[1]]
        support, self._query = torch.split(features, sizes, 1)
        self._support = SupportSet(support, batch.support_y, batch.classes)
        self.initial = self._start(start)

    def _start(self, start: Start) -> TaskParams:
        tasks, way = self.batch.classes.shape
        if start in ("prototypes", "closed_form"):
            return self.head.from_support(self._support, self.outer.head)
        if start == "zeros":
            return self.head.zeros(tasks, way, self._support.features)
        return {name: p.expand(tasks, *p.shape) for name, p in self.outer.start.items()}

    def inner_loss(self, v: TaskParams) -> Tensor:
        """G_t, ``[T]``: the head's own loss on the support set, and the proximal term."""
        loss = self.head.loss(v, self._support, self.outer.head)
        if self.prox == 0:
            return loss
        learned = self.outer.regularisation
        prox = self.prox if learned is None else learned.exp()
        real = (self.batch.classes >= 0).to(self.features.dtype)
        distance = {name: p - self.initial[name] for name, p in v.items()}
        for name in distance:
            if has_class_axis(name):  # A padded class has no weights.
                mask = real.reshape(*real.shape, *[1] * (distance[name].ndim - 2))
                distance[name] = distance[name] * mask
        return loss + 0.5 * prox * task_dot(distance, distance)

    def query_logits(self, v: TaskParams) -> Tensor:
        """Logits of the query set, ``[T, N*Q, N]``."""
        real = real_rows(self.batch, self.batch.query_y)
        return self.head.logits(v, self._query, self.outer.head, real)


def learned_start(
    head: Head, example: Tensor, way: int | None, features: int | None
) -> dict[str, Tensor]:
    """Outer variables that inner problems start from, of random small numbers.

    Args:
        head: of the tasks.
        example: a tensor of the type and on the device that they are to have.
        way: N.
        features: D.

    Raises:
        ConfigurationError: if the way or the number of features is not given.
    """
    if way is None or features is None:
        raise ConfigurationError(
            f"a learned start needs way and features; they are {way} and {features}"
        )
    zeros = head.zeros(1, way, example.new_zeros(1, 1, features))
    return {
        name: (0.01 * torch.randn_like(p[0])).detach().requires_grad_() for name, p in zeros.items()
    }
