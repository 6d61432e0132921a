"""A traced network's forward pass for all tasks, as one batch of all tasks' images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.adapt import inner_step
from fewshot_blo.kernel.conversion import for_tasks
from fewshot_blo.kernel.layers import ForwardContext, forward_context
from fewshot_blo.kernel.task_products import convolution, linear, suits

ROWS = "rows"
"""Key in the ``meta`` of a node: whether its value is a tensor with rows for each image; None where
it is no tensor."""


class MergedForward:
    """Applies a network to the images of each task with that task's parameters.

    The images of T tasks follow each other in one batch. A layer whose parameters all tasks share
    sees that batch, as it would see one task's. A linear layer or a convolution with parameters of
    each task is T matrix products, and all else that depends on such parameters is vmapped over
    tasks, operation by operation. Images are channels-last where the network's input is.

    Args:
        network: a traced network, in ``eval()`` mode, that treats every image by itself, its nodes
            marked with ``ROWS``.
        adapted: names of the parameters that each task has its own of.

    Raises:
        ConfigurationError: if images meet in the network, or it has an operation of tasks whose
            inputs or outputs are neither tensors of parameters nor have rows for each image.
    """

    def __init__(self, network: fx.GraphModule, adapted: Collection[str]) -> None:
        self._names = {
            node: [
                name.removeprefix(f"{node.target}.")
                for name, _ in network.named_parameters()
                if name.startswith(f"{node.target}.")
            ]
            for node in network.graph.nodes
            if node.op == "call_module"
        }
        self._of_tasks, self._stacked = _of_tasks(network.graph, frozenset(adapted))
        self._last = _last_uses(network.graph)
        self.network = for_tasks(network)
        # The modules as they are, which take channels-last images as such, with the same tensors.
        self._plain = copy.deepcopy(network)
        self._plain.load_state_dict(self.network.state_dict(keep_vars=True), assign=True)
        self._nodes = list(network.graph.nodes)

    def __call__(
        self, params: TaskParams, shared: Params, x: Tensor, *, running: bool = False
    ) -> Tensor:
        """The network's outputs, ``[T, B, ...]``.

        Args:
            params: parameters of each task, ``[T, ...]``.
            shared: parameters that all tasks share, in place of the network's, without a task axis.
            x: inputs, ``[T, B, ...]``.
            running: use running statistics where the kernel's own batch norms would not.
        """
        attention = sdpa_kernel(SDPBackend.MATH) if params else nullcontext()
        values: dict[fx.Node, Any] = {}
        context = ForwardContext(running=running, step=inner_step())
        with attention, forward_context(context):
            for node in self._nodes:
                if node.op == "placeholder":
                    values[node] = x.flatten(0, 1)
                elif node.op == "output":
                    output: Tensor = values[node.args[0]]
                    return output.unflatten(0, x.shape[:2])
                elif node.op == "get_attr":
                    values[node] = self._tensor(node.target, params, shared)
                elif node in self._of_tasks:
                    values[node] = self._each_task(node, values, params, shared, len(x))
                else:
                    values[node] = self._at_once(node, values, shared)
                for used in self._last.get(node, ()):
                    del values[used]
        raise AssertionError("a traced network has an output")

    def _tensor(self, name: str, params: Params, shared: Params) -> Tensor:
        if name in params or name in shared:
            return params[name] if name in params else shared[name]
        holder, _, own = name.rpartition(".")
        found: Tensor = getattr(self._plain.get_submodule(holder), own)
        return found

    def _at_once(self, node: fx.Node, values: dict[fx.Node, Any], shared: Params) -> Any:
        """The value of a node that no parameter of a task is in."""
        args, kwargs = _arguments(node, values)
        if node.op == "call_function":
            return _IN_PLACE_OF.get(node.target, node.target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        module = self._plain.get_submodule(node.target)
        if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
            return _mean_over_pixels(*args)
        own = self._own(node, shared)
        return functional_call(module, own, args, kwargs) if own else module(*args, **kwargs)

    def _own(self, node: fx.Node, given: Params) -> dict[str, Tensor]:
        """Of the given parameters, those of the node's module, by its own names."""
        names = ((name, f"{node.target}.{name}") for name in self._names.get(node, ()))
        return {name: given[full] for name, full in names if full in given}

    def _each_task(
        self,
        node: fx.Node,
        values: dict[fx.Node, Any],
        params: TaskParams,
        shared: Params,
        tasks: int,
    ) -> Tensor:
        """The value of a node with parameters of tasks."""
        own = self._own(node, params)
        if node.op == "call_module":
            module = self._plain.get_submodule(node.target)
            weight = "weight" in own
            if (
                type(module) is nn.Linear
                or suits(module)
                or (_is_convolution(module) and not weight)
            ):
                tensors = {**dict(module.named_parameters()), **self._own(node, shared), **own}
                arguments = values[node.args[0]], tensors["weight"], tensors.get("bias"), tasks
                return (
                    linear(*arguments)
                    if type(module) is nn.Linear
                    else convolution(module, *arguments)
                )
        nodes = node.all_input_nodes
        rows = [bool(n.meta.get(ROWS)) for n in nodes]
        inputs = [
            values[n].unflatten(0, (tasks, -1)) if r else values[n]
            for n, r in zip(nodes, rows, strict=True)
        ]
        dims = [0 if r or n in self._stacked else None for n, r in zip(nodes, rows, strict=True)]

        def one(own: dict[str, Tensor], *inputs: Any) -> Any:
            args, kwargs = _arguments(node, dict(zip(nodes, inputs, strict=True)))
            if node.op == "call_function":
                return node.target(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            module = self.network.get_submodule(node.target)
            return functional_call(module, {**self._own(node, shared), **own}, args, kwargs)

        output: Tensor = vmap(one, in_dims=(dict.fromkeys(own, 0), *dims))(own, *inputs)
        return output if node in self._stacked else output.flatten(0, 1)


def _of_tasks(
    graph: fx.Graph, adapted: frozenset[str]
) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
    """Nodes computed with parameters of tasks, and those whose values are ``[T, ...]`` without rows.

    All others have rows for the images of all tasks, or know of no task.
    """
    computed: set[fx.Node] = set()
    stacked: set[fx.Node] = set()
    from_images: set[fx.Node] = set()
    for node in graph.nodes:
        inputs, rows = node.all_input_nodes, node.meta.get(ROWS)
        if node.op == "placeholder" or not from_images.isdisjoint(inputs):
            from_images.add(node)
        if node.op == "get_attr":
            if node.target in adapted:
                stacked.add(node)
            continue
        if node.op == "output":
            if not (isinstance(node.args[0], fx.Node) and node.args[0].meta.get(ROWS)):
                raise ConfigurationError("the network's output has no rows for each image")
            continue
        holds = node.op == "call_module" and any(n.startswith(f"{node.target}.") for n in adapted)
        if holds or not stacked.isdisjoint(inputs):
            mixed = any(i in from_images and not i.meta.get(ROWS) for i in inputs)
            if mixed or rows is None or (node in from_images and not rows):
                raise ConfigurationError(f"'{node.name}' cannot be computed for each task alone")
            computed.add(node)
            if not rows:
                stacked.add(node)
        elif node in from_images and rows is False:
            raise ConfigurationError(f"images meet in '{node.name}'")
    return frozenset(computed), frozenset(stacked)


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node, those whose values nothing needs after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            last[used] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        uses.setdefault(node, []).append(used)
    return uses


def _arguments(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments, with values in place of nodes."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return args, kwargs


def _is_convolution(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.padding_mode == "zeros"


def _mean_over_pixels(x: Tensor) -> Tensor:
    """``[N, C, 1, 1]`` of ``[N, C, H, W]``; the gradient is channels-last, as other layers need it."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)[:, :, None, None]


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` by running statistics as one affine map, with one pass for its gradient."""
    if training or running_mean is None or running_var is None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else weight * scale
    shift = -running_mean * scale
    shift = shift if bias is None else bias + shift
    return torch.addcmul(shift, x.transpose(1, -1), scale).transpose(1, -1)


_IN_PLACE_OF: dict[Any, Callable[..., Any]] = {F.batch_norm: _batch_norm}
