"""Finds the nodes of a traced network that depend on per-task parameters, or can be fused."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass

import torch.nn.functional as F
from torch import fx, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.stacked.task_products import (
    is_convolution,
    is_own,
    is_pointwise,
    is_product,
)

ROWS = "rows"
"""Key in a node's ``meta``: the shape ``[V, ...]`` of one image's part of its value, which has V
rows per image; False for a tensor without rows per image, None if it is not a tensor."""


def of_tasks(
    graph: fx.Graph, adapted: Collection[str]
) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
    """Nodes computed from per-task parameters, and nodes of values ``[T, ...]`` without rows.

    All other nodes have rows for the images of all tasks, or do not depend on the task.

    Raises:
        ConfigurationError: if the network mixes images, or an operation on per-task parameters has
            an input or output that depends on images and is not a tensor with rows per image.
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
                raise ConfigurationError("the network's output does not have rows per image")
            continue
        holds = node.op == "call_module" and any(n.startswith(f"{node.target}.") for n in adapted)
        if holds or not stacked.isdisjoint(inputs):
            mixed = any(i in from_images and not i.meta.get(ROWS) for i in inputs)
            if mixed or rows is None or (node in from_images and not rows):
                raise ConfigurationError(f"'{node.name}' cannot be vmapped on its own")
            computed.add(node)
            if not rows:
                stacked.add(node)
        elif node in from_images and rows is False:
            raise ConfigurationError(f"'{node.name}' mixes images")
    return frozenset(computed), frozenset(stacked)


@dataclass(frozen=True)
class Sum:
    """``norm(layer(x) + up(h))``, with the norm folded into the weights of the others.

    Attributes:
        base: the node of the layer, or of any other value in its place.
        layer: whether ``base`` is a convolution that is computed as part of the sum.
        up: the node of a layer with a per-task weight and without bias, or None.
        norm: the node of the norm, or None.
    """

    base: fx.Node
    layer: bool
    up: fx.Node | None
    norm: fx.Node | None

    @property
    def inputs(self) -> list[fx.Node]:
        """The nodes from whose values the sum is computed."""
        own = self.norm.all_input_nodes[1:] if self.norm else []
        base = self.base.all_input_nodes if self.layer else [self.base]
        return [*base, *(self.up.all_input_nodes if self.up else []), *own]


def find_sums(
    network: fx.GraphModule, adapted: Collection[str]
) -> tuple[dict[fx.Node, Sum], frozenset[fx.Node]]:
    """The sums in a network by the node of their value, and the nodes inside the sums."""
    sums: dict[fx.Node, Sum] = {}
    inside: set[fx.Node] = set()
    tensors = [*network.parameters(), *network.buffers()]
    if len({t.dtype for t in tensors if t.is_floating_point()}) > 1:
        return sums, frozenset()
    modules: dict[str, nn.Module] = dict(network.named_modules())
    for node in reversed(network.graph.nodes):
        if node in inside:
            continue
        norm = node if _is_frozen_norm(node) else None
        last = node
        between: list[fx.Node] = []
        if norm is not None:
            last = _argument(node)
            while last.op == "call_method" and last.target == "to" and _once(last):
                between.append(last)
                last = _argument(last)
        base, up = _update(last, modules, adapted) if last is node or _once(last) else (last, None)
        if up is not None and last is not node:
            between.append(last)
        vectors = up is None or len(up.meta[ROWS]) == 2 or is_convolution(modules[str(up.target)])
        if norm is not None and not vectors:  # Its channels are not the update's outputs.
            continue
        layer = norm is not None and _once(base) and _is_layer(base, modules, adapted)
        if up is None and norm is None:
            continue
        sums[node] = Sum(base, layer, up, norm)
        inside.update(between, [base] if layer else [], [up] if up is not None else [])
    return sums, frozenset(inside)


def _once(node: fx.Node) -> bool:
    return len(node.users) == 1


def _argument(node: fx.Node) -> fx.Node:
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return first


def _is_frozen_norm(node: fx.Node) -> bool:
    """Whether the node is a traced ``FrozenBatchNorm``: running statistics, scale and shift."""
    return (
        node.op == "call_function"
        and node.target is F.batch_norm
        and len(node.args) == 3
        and all(isinstance(node.kwargs.get(name), fx.Node) for name in ("weight", "bias"))
        and node.kwargs.get("training") is False
        and len(node.all_input_nodes) == 5
    )


def _update(
    node: fx.Node, modules: dict[str, nn.Module], adapted: Collection[str]
) -> tuple[fx.Node, fx.Node | None]:
    """The two terms of a sum with a low-rank update; otherwise the node and None."""
    if node.op == "call_function" and node.target is operator.add and len(node.args) == 2:
        base, up = node.args
        if isinstance(base, fx.Node) and isinstance(up, fx.Node) and up.op == "call_module":
            module = modules[str(up.target)]
            pointwise = is_own(module, nn.Linear) or is_pointwise(module)
            own = f"{up.target}.weight" in adapted and getattr(module, "bias", None) is None
            same = bool(base.meta[ROWS]) and base.meta[ROWS] == up.meta[ROWS]
            if pointwise and own and same and _once(up) and base is not up:
                return base, up
    return node, None


def _is_layer(node: fx.Node, modules: dict[str, nn.Module], adapted: Collection[str]) -> bool:
    """Whether a norm can be folded into the layer's weight."""
    if node.op != "call_module" or not is_convolution(modules[str(node.target)]):
        return False
    own = f"{node.target}.weight" in adapted
    return is_product(modules[str(node.target)]) if own else True
