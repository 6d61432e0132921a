"""Learning features on which a small head solves a new task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import Bilevel, Params, TaskParams, sum_tensors
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel import Backend, TaskForward, for_tasks, measure_backend
from fewshot_blo.networks.heads import CosineHead, Head, LinearHead, class_means
from fewshot_blo.problems.few_shot import (
    BoundTasks,
    NormMode,
    query_forward,
    real_rows,
    task_cross_entropy,
    task_keys,
)
from tasks import TaskBatch

Start = Literal["zeros", "prototypes", "learned"]

_START = "start/"
_LOG_PROX = "log_prox"


class SharedEncoder:
    """outer: an encoder shared by all tasks; inner: the weights v_t of each task's head.

    ``F_t = CE(query; v)`` and ``G_t = CE(support; v) + prox/2 |v - start|²`` on the encoder's
    features. The head's problem is small and, with a proximal term, strongly convex: Unroll,
    Implicit and Penalty all have a hypergradient.

    The encoder's outputs are the leaves that a strategy differentiates with respect to; one
    backward pass then carries that cotangent through the encoder. This is exact, and an outer step
    costs one pass through the encoder whatever the strategy does with the head.

    Source: Mehra & Hamm (arXiv 1911.03432), the few-shot experiment; starting from prototypes:
    Triantafillou et al., "Proto-MAML" (arXiv 1903.03096).

    Args:
        encoder: any module from images to features ``[B, D]``; it is copied.
        head: linear or cosine.
        prox: weight of the proximal term, which is l2 regularisation for a start at zero.
        start: where the inner problem starts. "zeros" (linear head), "prototypes" (the class
            means of the support features) or "learned" (an outer variable).
        learn_prox: make the logarithm of ``prox`` an outer variable.
        way, features: N and D, needed for a learned start.
        backend: of the encoder's forward pass; "auto" measures at the first batch.

    Raises:
        ConfigurationError: if the settings contradict each other.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: Head | None = None,
        *,
        prox: float = 0.1,
        start: Start = "prototypes",
        learn_prox: bool = False,
        way: int | None = None,
        features: int | None = None,
        backend: Backend | Literal["auto"] = "auto",
    ) -> None:
        self.network = for_tasks(encoder)
        self.head: Head = head or LinearHead()
        self.start, self.prox, self.backend = start, prox, backend
        if prox < 0 or (learn_prox and prox == 0):
            raise ConfigurationError(
                f"prox is {prox}: it must be positive to be learned, and never negative"
            )
        if start == "zeros" and isinstance(self.head, CosineHead):
            raise ConfigurationError(
                "a cosine head has no gradient at zero weights: use start 'prototypes' or 'learned'"
            )
        self._encoder = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        self.outer: dict[str, Tensor] = dict(self._encoder)
        example = next(iter(self._encoder.values()), torch.zeros(()))
        if start == "learned":
            self.outer.update(self._learned_start(example, way, features))
        if learn_prox:
            self.outer[_LOG_PROX] = torch.full_like(example[..., 0].sum(), prox).log().detach()
            self.outer[_LOG_PROX].requires_grad_()

    def _learned_start(
        self, example: Tensor, way: int | None, features: int | None
    ) -> dict[str, Tensor]:
        if way is None or features is None:
            raise ConfigurationError(
                f"a learned start needs way and features; they are {way} and {features}"
            )
        zeros = self.head.zeros(1, way, example.new_zeros(1, 1, features))
        return {
            _START + name: (0.01 * torch.randn_like(p[0])).detach().requires_grad_()
            for name, p in zeros.items()
        }

    def prepare(self, batch: TaskBatch) -> None:
        """Measures which backend is faster for batches like this one, where it is "auto"."""
        if self.backend == "auto":
            tasks = batch[: min(batch.tasks, 4)]
            self.backend = measure_backend(self.network, {}, self._encoder, tasks.query_x)

    def bind(self, batch: TaskBatch, norm: NormMode, keys: Tensor | None = None) -> BoundTasks:
        """Encodes a batch of tasks and states the heads' bilevel problem on the features.

        Raises:
            ConfigurationError: if the backend has not been chosen.
        """
        support, query = self._encode(batch, norm, keys)
        leaves: dict[str, Tensor] = {
            "features/support": support.detach().requires_grad_(),
            "features/query": query.detach().requires_grad_(),
        }
        own = {n: p for n, p in self.outer.items() if n not in self._encoder}
        start = self._start(batch, leaves["features/support"])
        prox: Tensor | float = own[_LOG_PROX].exp() if _LOG_PROX in own else self.prox

        def inner_loss(v: TaskParams) -> Tensor:
            logits = self.head.logits(v, leaves["features/support"])
            loss = task_cross_entropy(logits, batch.support_y, batch.classes)
            squares = [(p - start[name]).square().flatten(1).sum(1) for name, p in v.items()]
            return loss + 0.5 * prox * sum_tensors(squares)

        def query_logits(v: TaskParams) -> Tensor:
            return self.head.logits(v, leaves["features/query"])

        def outer_loss(v: TaskParams) -> Tensor:
            return task_cross_entropy(query_logits(v), batch.query_y, batch.classes)

        def pullback(gradient: Params) -> Params:
            cotangents = [gradient[name] for name in ("features/support", "features/query")]
            encoder = torch.autograd.grad(
                [support, query], list(self._encoder.values()), cotangents, materialize_grads=True
            )
            through = dict(zip(self._encoder, encoder, strict=True))
            return {**through, **{name: gradient[name] for name in own}}

        bilevel = Bilevel({**leaves, **own}, start, inner_loss, outer_loss)
        return BoundTasks(bilevel, query_logits, pullback)

    def _encode(
        self, batch: TaskBatch, norm: NormMode, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Features of the support set ``[T, N*K, D]`` and of the query set ``[T, N*Q, D]``."""
        if self.backend == "auto":
            raise ConfigurationError("the backend is not chosen yet: call prepare(batch) first")
        forward = TaskForward(self.network, self.backend)
        support_keys, query_keys = task_keys(batch, keys)
        support = forward(
            {},
            self._encoder,
            batch.support_x,
            rows=real_rows(batch.support_y),
            running=norm == "running",
            keys=support_keys,
        )
        return support, query_forward(forward, {}, self._encoder, batch, norm, query_keys)

    def _start(self, batch: TaskBatch, support: Tensor) -> TaskParams:
        if self.start == "prototypes":
            return self.head.from_prototypes(class_means(support, batch.support_y, batch.way))
        if self.start == "zeros":
            return self.head.zeros(batch.tasks, batch.way, support)
        learned: Mapping[str, Tensor] = {
            n.removeprefix(_START): p for n, p in self.outer.items() if n.startswith(_START)
        }
        return {name: p.expand(batch.tasks, *p.shape) for name, p in learned.items()}
