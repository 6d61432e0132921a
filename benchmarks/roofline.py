"""How fast a row could be: its operations and bytes over what the device was measured to do.

Operations are those of convolutions and linear layers. With ``f`` for a layer's forward pass over
some images, its gradient costs ``f`` for the output, ``f`` for the weights and ``f`` for the input;
a product with the Hessian costs ``6 f`` more, by reverse over reverse as by forward over reverse
mode. The first layer, whose input is no function of the parameters, needs ``2 f`` and ``2 f``.

Bytes are the least there is to move: in each derivative pass (one forward, two for a gradient, two
more for a Hessian product) every activation and weight is written once and read once. Activations
are the inputs and outputs of convolutions and linear layers; what lies between them (norm, ReLU,
pooling, sums) is taken for fused and free, and images for read at no cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from grid import Cell
from ours import CG_STEPS
from timing import seconds
from torch import Tensor, nn

from fewshot_blo.kernel.precision import product_precision


class Counts(NamedTuple):
    """How often some layers see a task's images: forward alone, gradients, Hessian products."""

    forward: int = 0
    gradient: int = 0
    hessian: int = 0

    @property
    def passes(self) -> int:
        """Derivative passes."""
        return self.forward + 2 * self.gradient + 2 * self.hessian


@dataclass
class Layers:
    """Layers that are used alike: operations and activations for one image, and weights.

    Attributes:
        inner: forward operations of layers whose input depends on parameters.
        first: of the others.
        activations: numbers.
        weights: numbers.
    """

    inner: int = 0
    first: int = 0
    activations: int = 0
    weights: int = 0

    def operations(self, counts: Counts) -> int:
        """Operations for one image."""
        inner = counts.forward + 3 * counts.gradient + 6 * counts.hessian
        first = counts.forward + 2 * counts.gradient + 2 * counts.hessian
        return inner * self.inner + first * self.first


class Work(NamedTuple):
    """What an outer step has to do at least."""

    operations: int
    bytes: int


class Floor(NamedTuple):
    """The least seconds of an outer step, and whether operations or bytes bound it."""

    seconds: float
    bound: str


def work(cell: Cell) -> Work:
    """Operations and least bytes of one outer step."""
    encoder, head = _layers(cell)
    images = {"support": cell.way * cell.shot, "query": cell.way * cell.query}
    inner = _inner_counts(cell)
    outer = {
        "support": Counts(forward=1) if cell.method == "first" else Counts(gradient=1),
        "query": Counts(gradient=1),
    }
    if cell.adapted == "head":
        # Within the inner problem the features are constants.
        head.first, head.inner = head.inner, 0
    activation_size = 2 if cell.precision == "bfloat16" else 4
    operations = moved = 0
    for part, counts in inner.items():
        shared = cell.adapted == "head"
        for layers, times, copies in (
            (encoder, outer[part] if shared else counts, 1 if shared else cell.tasks),
            (head, counts, cell.tasks),
        ):
            rows = cell.tasks * images[part]
            operations += rows * layers.operations(times)
            size = rows * layers.activations * activation_size + 4 * copies * layers.weights
            moved += 2 * times.passes * size
    return Work(operations, moved)


def _inner_counts(cell: Cell) -> dict[str, Counts]:
    """How often the layers that adapt see the support and the query images."""
    steps, head = cell.steps, int(cell.adapted == "head")
    if cell.method == "second":
        return {"support": Counts(0, steps, steps), "query": Counts(gradient=1)}
    if cell.method == "first":
        return {"support": Counts(gradient=steps), "query": Counts(gradient=1)}
    # At the solution. The outer variables are in the proximal term alone, whose derivatives are
    # free, unless the features are outer variables too.
    if cell.method == "implicit":
        return {"support": Counts(0, steps + 1, CG_STEPS + head), "query": Counts(gradient=1)}
    return {
        "support": Counts(0, steps + 1, steps + head),
        "query": Counts(1 - head, steps + head, 0),
    }


def _layers(cell: Cell) -> tuple[Layers, Layers]:
    """Encoder and head, counted by running shapes through the network without any data."""
    with torch.device("meta"):
        encoder, features = cell.encoder()
        head = nn.Linear(features, cell.way)
        images = torch.empty(2, cell.channels, cell.size, cell.size)
    found = Layers(), Layers()
    seen: dict[int, Tensor] = {id(images): images}

    def count(layers: Layers) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            (x,) = inputs
            operations = 2 * output[0].numel() * module.get_parameter("weight")[0].numel()
            if x.requires_grad:
                layers.inner += operations
            else:
                layers.first += operations
            for tensor in (x, output):
                if id(tensor) not in seen:
                    seen[id(tensor)] = tensor
                    layers.activations += tensor[0].numel()
            layers.weights += sum(p.numel() for p in module.parameters())

        return hook

    for network, layers in zip((encoder, head), found, strict=True):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count(layers))
    head(encoder(images))
    return found


def floor(cell: Cell, rates: dict[str, float]) -> Floor:
    """The larger of operations over the matrix product rate and bytes over the copy rate."""
    least = work(cell)
    by_operations = least.operations / rates["operations"]
    by_bytes = least.bytes / rates["bytes"]
    if by_operations > by_bytes:
        return Floor(by_operations, "operations")
    return Floor(by_bytes, "bytes")


def measure_rates(cell: Cell, device: torch.device) -> dict[str, float]:
    """Operations a second of large square matrix products, and bytes a second of a copy."""
    dtype = torch.bfloat16 if cell.precision == "bfloat16" else torch.float32
    operations = 0.0
    for side in (512, 1024, 2048, 4096, 8192):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with product_precision(cell.precision, device):
            time = _best_seconds(partial(torch.mm, a, b, out=torch.empty_like(a)), device)
        operations = max(operations, 2 * side**3 / time)
        if time > 0.05:  # Large enough for the fastest, too large for a processor without bfloat16.
            break
    size = 1 << (31 if device.type == "cuda" else 28)
    source = torch.zeros(size // 4, device=device)
    time = _best_seconds(partial(torch.empty_like(source).copy_, source), device)
    return {"operations": operations, "bytes": 2 * size / time}


def _best_seconds(function: Callable[[], object], device: torch.device) -> float:
    return min(seconds(function, device) for _ in range(5))
