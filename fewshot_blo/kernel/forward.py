"""A network's forward pass for T tasks: task by task, vmapped, or with fused kernels."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch._C import _autograd
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.adapt import inner_step
from fewshot_blo.kernel.interception import CHECKPOINTING, following_norms, kernel_forward
from fewshot_blo.kernel.layers import ForwardContext, TorchBatchNorm, fold
from fewshot_blo.kernel.precision import Precision, forward_precision
from fewshot_blo.kernel.purity import (
    attributes_kept,
    call,
    changed_buffers,
    input_kept,
    kind_of_pass,
    names_of_tensors,
    parameters_kept,
    writable_buffers,
    writers,
)
from fewshot_blo.kernel.stacked.fused import fused_kernels
from fewshot_blo.tasks.inputs import Inputs, each, one_of, tensors_of

KernelBackend = Literal["loop", "batched", "fused"]
Backend = KernelBackend | Literal["reference"]
"""How a network runs for T tasks. "loop": task by task. "batched": vmapped over tasks. "fused":
also with norm, ReLU and pooling in one Triton kernel on a CUDA device (the CPU always fuses them).
"reference": the user's own module task by task, slower, with which the others must agree."""


class Forward(Protocol):
    """A network's forward pass for T tasks by any backend.

    Attributes:
        network: the kernel's copy of the network.
    """

    @property
    def network(self) -> nn.Module: ...

    def part(self, name: str) -> Forward:
        """The forward pass of a submodule."""
        ...

    def __call__(
        self,
        params: TaskParams,
        shared: Params,
        x: Inputs,
        *,
        rows: Tensor | int | None = None,
        running: bool = False,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The network's outputs, ``[T, B, ...]``; see ``TaskForward``."""
        ...


def attention(*, differentiated: bool) -> AbstractContextManager[object]:
    """Selects the unfused attention implementation if inner parameters are differentiated.

    The fused kernels behind ``scaled_dot_product_attention`` have no second derivatives.
    """
    return sdpa_kernel(SDPBackend.MATH) if differentiated else nullcontext()


@contextmanager
def checkpointing_refused() -> Iterator[None]:
    """Inside, setting hooks on saved tensors raises an error that names the remedy."""
    try:
        _autograd._saved_tensors_hooks_disable(CHECKPOINTING)
    except RuntimeError:
        # Such hooks are already active around the forward pass and must keep working.
        _autograd._saved_tensors_hooks_enable()
        yield
        return
    try:
        yield
    except RuntimeError as error:
        # Under vmap, PyTorch 2.8 fails at this function before it sets hooks.
        if CHECKPOINTING in str(error) or "_NoopSaveInputs" in str(error):
            raise ConfigurationError(CHECKPOINTING) from error
        raise
    finally:
        _autograd._saved_tensors_hooks_enable()


@contextmanager
def _slow_rules_allowed() -> Iterator[None]:
    """Turns off vmap's warning about operations without a batching rule: backends are timed."""
    functorch: Any = importlib.import_module("torch._C._functorch")
    switch = functorch._set_vmap_fallback_warning_enabled
    switch(False)
    try:
        yield
    finally:
        switch(True)


def only_tensor(output: object) -> Tensor:
    """Returns the output of a network, which must be one tensor.

    Raises:
        ConfigurationError: if it is not a tensor.
    """
    if isinstance(output, Tensor):
        return output
    kind = type(output).__name__
    if isinstance(output, Mapping):
        kind += f" with {', '.join(map(repr, output))}"
    elif isinstance(output, tuple | list):
        kind += f" of {len(output)}"
    raise ConfigurationError(
        f"the network returns a {kind}: it must return one tensor, [B, ...]; wrap it in a module "
        "whose forward returns that tensor"
    )


def floating(x: Inputs, *others: Params) -> torch.dtype:
    """The floating-point type of inputs; of parameters where the inputs are integers."""
    tensors = [*tensors_of(x), *(p for params in others for p in params.values())]
    return next((p.dtype for p in tensors if p.is_floating_point()), torch.get_default_dtype())


@dataclass(frozen=True)
class TaskForward:
    """Applies a network to the images of each task with that task's parameters.

    Attributes:
        network: a module returned by ``for_tasks``; "batched" needs a forward that
            ``torch.func.vmap`` can batch. A forward pass leaves it unchanged (see ``purity``).
        backend: "batched" and "fused" vmap the forward over tasks; "loop" calls it task by task.
            Their results agree up to rounding.
        precision: number format of the forward pass; outputs have the dtype of the images.
    """

    network: nn.Module
    backend: KernelBackend
    precision: Precision = "float32"

    def part(self, name: str) -> TaskForward:
        """The forward pass of a submodule."""
        return replace(self, network=self.network.get_submodule(name))

    def __call__(
        self,
        params: TaskParams,
        shared: Params,
        x: Inputs,
        *,
        rows: Tensor | int | None = None,
        running: bool = False,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The network's outputs, ``[T, B, ...]``.

        Args:
            params: parameters of each task, ``[T, ...]``.
            shared: parameters that all tasks share, without a task axis.
            x: inputs, ``[T, B, ...]``, as one tensor or by name.
            rows: weights of the rows in batch statistics, ``[T, B]``, or the number of leading
                rows that count, ``NO_ROWS`` for none; None for all rows.
            running: normalise by running statistics.
            keys: one key per task for random numbers, ``[T]``.

        Raises:
            ConfigurationError: if the network returns anything but a tensor, uses activation
                checkpointing, or writes to its parameters.
        """
        with parameters_kept({**self._parameters, **shared, **params}):
            return self._of_tasks(params, shared, x, rows, running, keys)

    def _of_tasks(
        self,
        params: TaskParams,
        shared: Params,
        x: Inputs,
        rows: Tensor | int | None,
        running: bool,
        keys: Tensor | None,
    ) -> Tensor:
        step, tasks = inner_step(), len(one_of(x))
        weights, first = (rows, None) if isinstance(rows, Tensor) else (None, rows)

        def one(
            params: Params, state: Params, x: Inputs, weights: Tensor | None, key: Tensor | None
        ) -> Tensor:
            key = None if key is None else fold(key, step or 0)
            context = ForwardContext(first if weights is None else weights, running, key, step)
            with self._inside(context, one_of(x).device, differentiated=bool(params)):
                found, _ = call(self.network, {**state, **shared, **params}, self._names, x)
            output = only_tensor(found)
            return (
                output.to(floating(x, params, state, shared))
                if self.precision == "bfloat16"
                else output
            )

        # One unbind: the gradient of each of T selections would be as large as all T tasks.
        columns = {name: p.unbind(0) for name, p in params.items()}

        def alone(t: int, state: Params) -> Tensor:
            task_params = {name: column[t] for name, column in columns.items()}
            task_weights, key = (None if p is None else p[t] for p in (weights, keys))
            with input_kept(self.network, kind, each(lambda p: p[t], x)) as own:
                return one(task_params, state, own, task_weights, key)

        kind = kind_of_pass(self.network, each(lambda p: p[0], x))
        changed = changed_buffers(self.network, kind, self._buffers, lambda state: alone(0, state))
        if self.backend == "loop":
            return torch.stack([alone(t, self._state()) for t in range(tasks)])
        # A buffer that is not expected to change has no task axis: a write that depends on the
        # task's values then fails, and any other is the same for all tasks.
        state = {
            name: b.expand(tasks, *b.shape).clone() if name in changed else b
            for name, b in self._state().items()
        }
        dims_of_state = {name: 0 if name in changed else None for name in state}
        per_task = (None if p is None else 0 for p in (weights, keys))
        dims = (0 if params else None, dims_of_state or None, 0, *per_task)
        with _slow_rules_allowed(), input_kept(self.network, kind, x) as own:
            output: Tensor = vmap(one, in_dims=dims)(params, state, own, weights, keys)
        return output

    def _state(self) -> dict[str, Tensor]:
        """Fresh copies of the buffers that a pass may write to."""
        return {name: self.network.get_buffer(name).clone() for name in self._buffers}

    @cached_property
    def _parameters(self) -> dict[str, Tensor]:
        return dict(self.network.named_parameters())

    @cached_property
    def _buffers(self) -> tuple[str, ...]:
        return writable_buffers(self.network)

    @cached_property
    def _names(self) -> dict[str, tuple[str, ...]]:
        return names_of_tensors(self.network)

    @cached_property
    def _norms(self) -> list[TorchBatchNorm]:
        return following_norms(self.network)

    @cached_property
    def _writers(self) -> list[nn.Module]:
        return writers(self.network)

    @contextmanager
    def _inside(
        self, context: ForwardContext, device: torch.device, *, differentiated: bool
    ) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(attributes_kept(self._writers))
            stack.enter_context(checkpointing_refused())
            stack.enter_context(kernel_forward(context, self._norms))
            stack.enter_context(forward_precision(self.precision, device))
            stack.enter_context(attention(differentiated=differentiated))
            stack.enter_context(fused_kernels(self.backend == "fused" or device.type != "cuda"))
            yield
