"""Splits a network into a frozen trunk, which runs once, and a tail with adapted parameters."""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.stacked.task_graph import ROWS

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_SIZES = (2, 3)


@dataclass(frozen=True)
class Split:
    """``tail(trunk(x))`` is the network's output.

    Attributes:
        trunk: network from images ``[B, C, H, W]`` to the tail's inputs, flattened to ``[B, D]``;
            none of its parameters adapt.
        tail: network from these to the output.
        adapted: names of the tail's parameters that adapt.
        whole: whether the network could not be split, so that the tail is all of it.
    """

    trunk: nn.Module
    tail: nn.Module
    adapted: tuple[str, ...]
    whole: bool


@torch.no_grad()
def split_network(network: nn.Module, adapted: Collection[str], image: torch.Size) -> Split:
    """Splits a network before the first layers whose parameters adapt.

    A network that ``torch.fx`` cannot trace, or whose halves do not reproduce its output, stays
    whole: its frozen layers then run in every inner step.

    Args:
        network: network to split; the halves hold a copy in ``eval()`` mode.
        adapted: names of the parameters that adapt.
        image: shape ``[C, H, W]`` of the images.

    Raises:
        ConfigurationError: if ``adapted`` is empty or names something else than parameters.
    """
    parameters = dict(network.named_parameters())
    unknown = sorted(set(adapted) - set(parameters))
    if unknown or not adapted:
        raise ConfigurationError(
            f"'{unknown[0]}' is not a parameter of the network, so it cannot adapt"
            if unknown
            else "adapted is empty: name at least one parameter of the network"
        )
    network = copy.deepcopy(network).eval()
    images = torch.rand(_SIZES[0], *image).to(next(iter(parameters.values())))
    expected = network(images)
    try:
        trunk, tail = _halves(network, frozenset(adapted), images)
        found = tail(trunk(images))
        complete = set(adapted) <= {name for name, _ in tail.named_parameters()}
        if complete and torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            return Split(trunk, tail, tuple(adapted), whole=False)
    except Exception:
        pass
    layers = OrderedDict(images=nn.Unflatten(1, tuple(image)), network=network)
    names = tuple(f"network.{name}" for name in adapted)
    return Split(nn.Flatten(), nn.Sequential(layers), names, whole=True)


class _Tracer(fx.Tracer):
    """Treats every module without children as one operation, not only those of PyTorch."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not list(m.children())


class _Recorder(fx.Interpreter):
    """Records the shape of every tensor; None for other values."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, torch.Size | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.shapes[n] = value.shape if isinstance(value, Tensor) else None
        return value


def _halves(
    network: nn.Module, adapted: frozenset[str], images: Tensor
) -> tuple[fx.GraphModule, fx.GraphModule]:
    graph = _Tracer().trace(network)
    _make_out_of_place(network, graph)
    per_image = _per_image(fx.GraphModule(network, graph), images)
    in_tail, boundary = _partition(graph, _owner(network, adapted), set(per_image))
    sizes = [prod(per_image[node]) for node in boundary]

    trunk, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    needed = _with_sources(boundary)
    for node in graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = trunk.node_copy(node, copies.__getitem__)
    flat = [_flat(trunk, copies[node], per_image[node]) for node in boundary]
    trunk.output(trunk.call_function(torch.cat, (flat, 1)))

    tail = fx.Graph()
    copies = {}
    parts = tail.call_function(torch.split, (tail.placeholder("features"), sizes, 1))
    for place, node in enumerate(boundary):
        part = tail.call_function(operator.getitem, (parts, place))
        copies[node] = _image(tail, part, per_image[node])
    for node in graph.nodes:
        if node in in_tail:
            copies[node] = tail.node_copy(node, copies.__getitem__)
    halves = fx.GraphModule(network, trunk), fx.GraphModule(network, tail)
    for half in halves:
        half.graph.eliminate_dead_code()
        half.delete_all_unused_submodules()
        half.recompile()
    return halves


def _flat(graph: fx.Graph, node: fx.Node, shape: torch.Size) -> fx.Node:
    """Flattens each image's part of a value to a row of the features.

    Maps are flattened with the channels last, so that the tail gets them in channels-last memory,
    in which convolutions are fastest.
    """
    if len(shape) == 4:
        node = graph.call_method("permute", (node, 0, 2, 3, 1))
    return graph.call_method("reshape", (node, -1, prod(shape)))


def _image(graph: fx.Graph, row: fx.Node, shape: torch.Size) -> fx.Node:
    """The inverse of ``_flat``; marks nodes by ``ROWS``."""
    _, *sizes = shape
    if len(shape) == 4:
        node = graph.call_method("reshape", (row, -1, *sizes[1:], sizes[0]))
        node.meta[ROWS] = torch.Size((shape[0], *sizes[1:], sizes[0]))
        node = graph.call_method("permute", (node, 0, 3, 1, 2))
    else:
        node = graph.call_method("reshape", (row, -1, *sizes))
    row.meta[ROWS], node.meta[ROWS] = torch.Size((1, prod(shape))), shape
    return node


def _make_out_of_place(network: nn.Module, graph: fx.Graph) -> None:
    """Removes in-place operations: the trunk's output is reused and must not be modified."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
        if node.op == "call_method" and node.target.endswith("_") and node.target[:-1].isalpha():
            node.target = node.target[:-1]
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}


def _per_image(module: fx.GraphModule, images: Tensor) -> dict[fx.Node, torch.Size]:
    """Shapes ``[V, ...]`` of one image's part of the tensors that have rows for each image.

    V is 1, or the number of views that the network makes of an image. Marks all nodes by ``ROWS``.
    """
    shapes = []
    for size in _SIZES:
        recorder = _Recorder(module)
        recorder.run(torch.cat([images, images])[:size])
        shapes.append(recorder.shapes)
    first, second = shapes
    found = {
        node: torch.Size((shape[0] // _SIZES[0], *shape[1:]))
        for node, shape in first.items()
        if shape and (other := second[node]) and shape[0] * _SIZES[1] == other[0] * _SIZES[0] > 0
    }
    for node, shape in first.items():
        node.meta[ROWS] = None if shape is None else found.get(node, False)
    return found


def _owner(network: nn.Module, adapted: frozenset[str]) -> frozenset[str]:
    """Names of the parameters that adapt and of all modules that contain one."""
    names = set(adapted)
    for name in adapted:
        parts = name.split(".")
        names.update(".".join(parts[:end]) for end in range(1, len(parts)))
    return frozenset(names)


def _partition(
    graph: fx.Graph, adapting: frozenset[str], per_image: set[fx.Node]
) -> tuple[set[fx.Node], list[fx.Node]]:
    """The nodes of the tail, and the nodes of the trunk whose values it reads."""
    in_tail: set[fx.Node] = set()
    for node in graph.nodes:
        own = node.op in ("call_module", "get_attr") and node.target in adapting
        if own or node.op == "output" or not in_tail.isdisjoint(node.all_input_nodes):
            in_tail.add(node)
    boundary: set[fx.Node] = set()
    waiting = [source for node in in_tail for source in node.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node in in_tail:
            continue
        if node in per_image:
            boundary.add(node)
        else:  # A size, or a tensor without images: computed in the tail as well.
            in_tail.add(node)
            waiting.extend(node.all_input_nodes)
    return in_tail, [node for node in graph.nodes if node in boundary]


def _with_sources(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes and all nodes that they are computed from."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found
