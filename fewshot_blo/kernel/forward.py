"""A network's forward pass for every task at once, by one of two backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.kernel.adapt import inner_step
from fewshot_blo.kernel.layers import ForwardContext, fold, forward_context

Backend = Literal["loop", "batched"]


@dataclass(frozen=True)
class TaskForward:
    """Applies a network to the images of each task with that task's parameters.

    Attributes:
        network: any module; "batched" needs a forward that ``torch.func.vmap`` can batch.
        backend: "batched" vmaps the forward over tasks; "loop" calls it task by task. Their
            results agree to rounding.
    """

    network: nn.Module
    backend: Backend

    def __call__(
        self,
        params: TaskParams,
        shared: Params,
        x: Tensor,
        *,
        rows: Tensor | None = None,
        running: bool = False,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The network's outputs, ``[T, B, ...]``.

        Args:
            params: parameters of each task, ``[T, ...]``.
            shared: parameters that all tasks share, without a task axis.
            x: inputs, ``[T, B, ...]``.
            rows: weights of the rows in batch statistics, ``[T, B]``; None for all rows.
            running: use running statistics.
            keys: one dropout key a task, ``[T]``.
        """
        step = inner_step()

        def one(params: Params, x: Tensor, rows: Tensor | None, key: Tensor | None) -> Tensor:
            key = None if key is None else fold(key, step)
            with forward_context(ForwardContext(rows, running, key)):
                output: Tensor = functional_call(self.network, {**shared, **params}, (x,))
            return output

        per_task = (params, x, rows, keys)
        if self.backend == "batched":
            dims = tuple(None if part is None or part == {} else 0 for part in per_task)
            output: Tensor = vmap(one, in_dims=dims)(*per_task)
            return output
        return torch.stack([one(*_task(per_task, t)) for t in range(x.shape[0])])


def _task(per_task: tuple, t: int) -> tuple:  # type: ignore[type-arg]
    params, *tensors = per_task
    return ({n: p[t] for n, p in params.items()}, *(None if p is None else p[t] for p in tensors))
