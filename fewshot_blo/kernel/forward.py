"""A network's forward pass for every task at once, by one of two backends."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.kernel.adapt import inner_step
from fewshot_blo.kernel.layers import ForwardContext, fold, forward_context
from fewshot_blo.kernel.precision import Precision, forward_precision

Backend = Literal["loop", "batched"]


def _attention(*, differentiated: bool) -> AbstractContextManager[None]:
    """Attention from single operations where inner parameters are differentiated.

    The fused kernels behind ``scaled_dot_product_attention`` have no second derivatives.
    """
    return sdpa_kernel(SDPBackend.MATH) if differentiated else nullcontext()


@dataclass(frozen=True)
class TaskForward:
    """Applies a network to the images of each task with that task's parameters.

    Attributes:
        network: any module; "batched" needs a forward that ``torch.func.vmap`` can batch.
        backend: "batched" vmaps the forward over tasks; "loop" calls it task by task. Their
            results agree to rounding.
        precision: of the forward pass; outputs have the dtype of the images.
    """

    network: nn.Module
    backend: Backend
    precision: Precision = "float32"

    def __call__(
        self,
        params: TaskParams,
        shared: Params,
        x: Tensor,
        *,
        rows: Tensor | int | None = None,
        running: bool = False,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The network's outputs, ``[T, B, ...]``.

        Args:
            params: parameters of each task, ``[T, ...]``.
            shared: parameters that all tasks share, without a task axis.
            x: inputs, ``[T, B, ...]``.
            rows: weights of the rows in batch statistics, ``[T, B]``, or how many of the first
                rows alone count; None for all rows.
            running: use running statistics.
            keys: one dropout key a task, ``[T]``.
        """
        step = inner_step()
        weights, first = (rows, None) if isinstance(rows, Tensor) else (None, rows)

        def one(params: Params, x: Tensor, weights: Tensor | None, key: Tensor | None) -> Tensor:
            key = None if key is None else fold(key, step or 0)
            context = ForwardContext(first if weights is None else weights, running, key, step)
            precision = forward_precision(self.precision, x.device)
            with forward_context(context), precision, _attention(differentiated=bool(params)):
                output: Tensor = functional_call(self.network, {**shared, **params}, (x,))
            return output.to(x.dtype) if self.precision == "bfloat16" else output

        if self.backend == "batched":
            dims = (0 if params else None, 0, *(None if p is None else 0 for p in (weights, keys)))
            output: Tensor = vmap(one, in_dims=dims)(params, x, weights, keys)
            return output
        # One unbind and not T selections, each of whose gradients would be T tasks large.
        columns = {name: p.unbind(0) for name, p in params.items()}
        outputs = []
        for t in range(x.shape[0]):
            task_params = {name: column[t] for name, column in columns.items()}
            task_weights, key = (None if p is None else p[t] for p in (weights, keys))
            outputs.append(one(task_params, x[t], task_weights, key))
        return torch.stack(outputs)
