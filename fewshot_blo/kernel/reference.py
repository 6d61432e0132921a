"""The user's own module in a plain loop over tasks: the oracle that the kernel must agree with.

It shares no layers, products or batching with the kernel. If all rows count in the statistics,
batch norms are the module's own in training mode; otherwise they follow the formula below. Random
numbers are drawn from the kernel's keys, so that results can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.adapt import inner_step
from fewshot_blo.kernel.conversion import copy_of
from fewshot_blo.kernel.forward import attention, checkpointing_refused, floating, only_tensor
from fewshot_blo.kernel.interception import (
    NO_STATISTICS,
    OWN_BATCH_NORM,
    Interception,
    following_norms,
)
from fewshot_blo.kernel.layers import NO_ROWS, ForwardContext, TorchBatchNorm, fold, forward_context
from fewshot_blo.kernel.precision import Precision, forward_precision
from fewshot_blo.kernel.purity import (
    attributes_kept,
    call,
    names_of_tensors,
    parameters_kept,
    writers,
)
from fewshot_blo.tasks.inputs import Inputs, each, one_of


@dataclass(frozen=True)
class ReferenceForward:
    """A ``TaskForward`` that runs the user's module.

    Attributes:
        original: the module as the user passed it in. A copy of it runs.
        network: the kernel's copy, for the values of buffers and of parameters that are not passed.
        precision: number format of the forward pass.
        changed: names of buffers that forward passes modified, except those of batch norms, and of
            attributes that they assigned tensors or numbers to. The next pass starts from the
            original values.
    """

    original: nn.Module
    network: nn.Module
    precision: Precision = "float32"
    changed: set[str] = field(default_factory=set, compare=False)

    def part(self, name: str) -> ReferenceForward:
        """The forward pass of a submodule."""
        original, network = (m.get_submodule(name) for m in (self.original, self.network))
        return ReferenceForward(original, network, self.precision)

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
        """The network's outputs, ``[T, B, ...]``; arguments as in ``TaskForward``."""
        outputs = []
        for t in range(len(one_of(x))):
            own = {name: p[t] for name, p in params.items()}
            task_rows = rows[t] if isinstance(rows, Tensor) else rows
            key = None if keys is None else fold(keys[t], inner_step() or 0)
            task_x = each(lambda p, t=t: p[t].clone(), x)  # The module may write to its input.
            outputs.append(self._one({**shared, **own}, task_x, task_rows, running, key))
        return torch.stack(outputs)

    def _one(
        self,
        params: Params,
        x: Inputs,
        rows: Tensor | int | None,
        running: bool,
        key: Tensor | None,
    ) -> Tensor:
        def batch_norm(
            x: Tensor,
            running_mean: Tensor | None,
            running_var: Tensor | None,
            weight: Tensor | None = None,
            bias: Tensor | None = None,
            training: bool = False,
            momentum: float = 0.1,
            eps: float = 1e-5,
        ) -> Tensor:
            own = running_mean, running_var, weight, bias
            if running and running_mean is None:
                raise ConfigurationError(NO_STATISTICS)
            if rows is None or running or not training:
                return F.batch_norm(x, *own, training and not running, momentum, eps)
            if isinstance(rows, int) and rows == NO_ROWS:
                raise ConfigurationError(OWN_BATCH_NORM)
            return _by_rows(x, rows, weight, bias, eps)

        buffers = self._buffers()
        parameters = {**self._constants(), **params}
        values = {**parameters, **buffers}
        context = ForwardContext(key=key, step=inner_step())
        with (
            parameters_kept(parameters),
            attributes_kept(self._writers) as assigned,
            forward_context(context),
            Interception(context, batch_norm),
            checkpointing_refused(),
            forward_precision(self.precision, one_of(x).device),
            attention(differentiated=True),
        ):
            found, placed = call(self.module, values, self._names, x)
        output = only_tensor(found)
        self._note(assigned, [n for n, b in buffers.items() if placed[n] is not b or b._version])
        return output.to(floating(x, values)) if self.precision == "bfloat16" else output

    def _note(self, assigned: list[tuple[nn.Module, str]], buffers: list[str]) -> None:
        if not (assigned or buffers):
            return
        names = {module: name for name, module in self.module.named_modules()}
        norms = tuple(names[m] + "." for m in names if isinstance(m, TorchBatchNorm))
        self.changed.update(f"{names[module]}.{name}".lstrip(".") for module, name in assigned)
        self.changed.update(n for n in buffers if not n.startswith(norms))

    def _constants(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self.network.named_parameters()}

    @cached_property
    def _names(self) -> dict[str, tuple[str, ...]]:
        return names_of_tensors(self.module)

    def _buffers(self) -> dict[str, Tensor]:
        """Fresh copies of all buffers."""
        return {n: b.clone() for n, b in self.network.named_buffers() if n in self._names}

    @cached_property
    def _writers(self) -> list[nn.Module]:
        return writers(self.module)

    @cached_property
    def module(self) -> nn.Module:
        """A copy of the module in the dtype and mode of the kernel's network.

        Batch norms whose statistics the norm mode chooses are in training mode, as in the kernel.
        """
        module = copy_of(self.original)
        example = next((p for p in self.network.parameters()), None)
        module = module if example is None else module.to(example)
        modes = {name: m.training for name, m in self.network.named_modules()}
        for name, m in module.named_modules():
            m.training = modes[name]
        for norm in following_norms(module):
            norm.training = True
        return module


def _by_rows(
    x: Tensor, rows: Tensor | int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """``γ (x - μ) / √(v + ε) + β`` with mean and biased variance of the chosen rows."""
    chosen = x[:rows] if isinstance(rows, int) else x[rows.bool()]
    values = chosen.transpose(0, 1).flatten(1)
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean = values.mean(1)
    variance = (values - mean[:, None]).square().mean(1)
    normal = (x - mean.reshape(shape)) / (variance + eps).sqrt().reshape(shape)
    normal = normal if weight is None else normal * weight.reshape(shape)
    return normal if bias is None else normal + bias.reshape(shape)
