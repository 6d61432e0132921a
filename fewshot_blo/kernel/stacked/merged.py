"""A traced network's forward pass with the images of all tasks in one batch."""

from __future__ import annotations

import copy
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.fx.node import map_arg
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.adapt import inner_step
from fewshot_blo.kernel.conversion import for_tasks
from fewshot_blo.kernel.layers import ForwardContext, forward_context
from fewshot_blo.kernel.stacked.task_graph import ROWS, Sum, find_sums, of_tasks
from fewshot_blo.kernel.stacked.task_products import (
    add_linear,
    affine,
    by_task,
    convolution,
    is_convolution,
    is_own,
    is_product,
    linear,
    of_channels,
    of_images,
)


class MergedForward:
    """Applies a network to the images of each task with that task's parameters.

    The images of T tasks are concatenated to one batch, which layers with shared parameters process
    at once. Linear layers and convolutions with per-task parameters are batched matrix products of
    T matrices. All other operations that depend on per-task parameters are vmapped over tasks, one
    by one.

    Args:
        network: a traced network in ``eval()`` mode that treats every image independently, its
            nodes marked by ``ROWS``.
        adapted: names of the per-task parameters.

    Raises:
        ConfigurationError: if the network mixes images, has an operation on per-task parameters
            that cannot be vmapped on its own, or a layer with a forward assigned to the instance.
    """

    def __init__(self, network: fx.GraphModule, adapted: Collection[str]) -> None:
        for name, layer in network.named_modules():
            if "forward" in vars(layer):  # A copy's forward would use the original's parameters.
                raise ConfigurationError(
                    f"layer '{name}' has a forward that was assigned to the instance, which cannot "
                    "be copied: define it in a subclass, or use backend 'batched' or 'loop'"
                )
        self.network = for_tasks(network)
        # The unconverted layers, which keep channels-last memory, with the same tensors.
        self.plain = copy.deepcopy(network)
        self.plain.load_state_dict(
            self.network.state_dict(keep_vars=True), strict=False, assign=True
        )
        graph = self.plain.graph
        modules = dict(self.plain.named_modules())
        self.layers = {n: modules[str(n.target)] for n in graph.nodes if n.op == "call_module"}
        self.of_tasks, self.stacked = of_tasks(graph, adapted)
        self.sums, self.inside = find_sums(self.plain, adapted)
        self.order = [node for node in graph.nodes if node not in self.inside]
        self.last = self._last_uses()

    def __call__(
        self,
        params: TaskParams,
        shared: Params,
        x: Tensor,
        *,
        running: bool = False,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The network's outputs, ``[T, B, ...]``.

        Args:
            params: per-task parameters, ``[T, ...]``.
            shared: shared parameters in place of the network's, without a task axis.
            x: inputs, ``[T, B, ...]``.
            running: use running statistics where the kernel's own batch norms would not.
            keys: not used: a network in ``eval()`` mode draws no random numbers.
        """
        del keys
        attention = sdpa_kernel(SDPBackend.MATH) if params else nullcontext()
        context = ForwardContext(running=running, step=inner_step())
        with attention, forward_context(context):
            rows = _Pass(self, params, shared, len(x)).run(x.flatten(0, 1))
        return by_task(rows, len(x))

    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        """For each node, the nodes whose values are not needed after it."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self.order:
            inputs = self.sums[node].inputs if node in self.sums else node.all_input_nodes
            for used in inputs:
                last[used] = node
        uses: dict[fx.Node, list[fx.Node]] = {}
        for used, node in last.items():
            uses.setdefault(node, []).append(used)
        return uses


@dataclass
class _Pass:
    """One forward pass."""

    merged: MergedForward
    params: TaskParams
    shared: Params
    tasks: int

    def run(self, x: Tensor) -> Tensor:
        """Outputs for inputs ``[T*B, ...]``."""
        merged = self.merged
        self.values: dict[fx.Node, Any] = {}
        *operations, output = merged.order
        for node in operations:
            self.values[node] = x if node.op == "placeholder" else self._value(node)
            for used in merged.last.get(node, ()):
                del self.values[used]
        result: Tensor = self.values[output.args[0]]
        return result

    def _value(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._tensor(str(node.target))
        if node in self.merged.sums:
            return self._sum(self.merged.sums[node])
        if node.op == "call_module":
            layer: Any = self.merged.layers[node]
            own = f"{node.target}.weight" in self.params
            if is_product(layer) if own else is_convolution(layer):
                x = self.values[_first(node)]
                return convolution(layer, x, *self._weight_and_bias(node), self.tasks)
            if is_own(layer, nn.Linear):
                x = self.values[_first(node)]
                return linear(x, *self._weight_and_bias(node), self.tasks)
        return (self._each_task if node in self.merged.of_tasks else self._at_once)(node)

    def _at_once(self, node: fx.Node) -> Any:
        """The value of a node that depends on no per-task parameter."""
        args, kwargs = _arguments(node, self.values)
        if node.op != "call_module":
            return _called(node, args, kwargs)
        layer = self.merged.layers[node]
        if is_own(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
            return _mean_over_pixels(*args)
        own = self._given(node, layer, self.shared)
        return functional_call(layer, own, args, kwargs) if own else layer(*args, **kwargs)

    def _sum(self, found: Sum) -> Tensor:
        """A layer, a low-rank update and a norm, fused."""
        scale, shift = self._scale_and_shift(found.norm) if found.norm else (None, None)
        if found.layer:
            y = self._normed_layer(found.base, scale, shift)
        else:
            y = self.values[found.base]
            y = y if scale is None or shift is None else affine(y, scale, shift, self.tasks)
        if found.up is None:
            return y
        weight = self.params[f"{found.up.target}.weight"].flatten(2)
        weight = weight if scale is None else weight * scale.unsqueeze(-1)
        h = self.values[_first(found.up)]
        return of_images(add_linear(of_channels(y), of_channels(h), weight))

    def _normed_layer(self, node: fx.Node, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        """A convolution and a norm, folded into its weight unless that makes T weights of one."""
        layer: Any = self.merged.layers[node]
        x, (weight, bias) = self.values[_first(node)], self._weight_and_bias(node)
        assert scale is not None
        assert shift is not None
        if scale.ndim > 1 and weight.ndim == 4:
            y = convolution(layer, x, weight, bias, self.tasks)
            return affine(y, scale, shift, self.tasks)
        bias = shift if bias is None else torch.addcmul(shift, bias, scale)
        return convolution(layer, x, weight * scale[..., None, None, None], bias, self.tasks)

    def _scale_and_shift(self, norm: fx.Node) -> tuple[Tensor, Tensor]:
        """Scale and shift of a frozen norm: ``[C]``, or ``[T, C]`` with per-task parameters."""
        arguments: Any = (*norm.args[1:], norm.kwargs["weight"], norm.kwargs["bias"])
        mean, variance, weight, bias = (self.values[n] for n in arguments)
        scale = weight * torch.rsqrt(variance + norm.kwargs["eps"])
        return scale, torch.addcmul(bias, mean, scale, value=-1)

    def _each_task(self, node: fx.Node) -> Tensor:
        """The value of a node with per-task parameters, vmapped over tasks."""
        merged, nodes = self.merged, node.all_input_nodes
        own: dict[str, Tensor] = {}
        layer = nn.Module()
        if node.op == "call_module":
            layer = merged.network.get_submodule(str(node.target))
            own = self._given(node, layer, self.params)
        inputs, dims = [], []
        for n in nodes:
            rows = bool(n.meta.get(ROWS))
            value = self.values[n]
            inputs.append(by_task(value, self.tasks) if rows else value)
            dims.append(0 if rows or n in merged.stacked else None)

        def one(own: dict[str, Tensor], *inputs: Any) -> Any:
            args, kwargs = _arguments(node, dict(zip(nodes, inputs, strict=True)))
            if node.op != "call_module":
                return _called(node, args, kwargs)
            shared = self._given(node, layer, self.shared)
            return functional_call(layer, {**shared, **own}, args, kwargs)

        output: Tensor = vmap(one, in_dims=(dict.fromkeys(own, 0), *dims))(own, *inputs)
        return output if node in merged.stacked else output.flatten(0, 1)

    def _tensor(self, name: str) -> Tensor:
        for given in (self.params, self.shared):
            if name in given:
                return given[name]
        holder, _, own = name.rpartition(".")
        found: Tensor = getattr(self.merged.plain.get_submodule(holder), own)
        return found

    def _weight_and_bias(self, node: fx.Node) -> tuple[Tensor, Tensor | None]:
        biased = (
            getattr(self.merged.plain.get_submodule(str(node.target)), "bias", None) is not None
        )
        weight = self._tensor(f"{node.target}.weight")
        return weight, self._tensor(f"{node.target}.bias") if biased else None

    def _given(self, node: fx.Node, layer: nn.Module, given: Params) -> dict[str, Tensor]:
        """The given tensors that belong to the node's layer, by the layer's own names."""
        names = [name for name, _ in layer.named_parameters()]
        return {n: given[f"{node.target}.{n}"] for n in names if f"{node.target}.{n}" in given}


def _first(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _arguments(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments, with nodes replaced by their values."""
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    return args, kwargs


def _called(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the node's function or method."""
    target: Any = node.target
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def _mean_over_pixels(x: Tensor) -> Tensor:
    """``[N, C, 1, 1]`` of ``[N, C, H, W]``, with a gradient in channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)[:, :, None, None]
