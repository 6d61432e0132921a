"""The last layers of a network, adapted to each task together with a head on their features."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import ClassVar, Literal

from torch import Tensor, fx, nn

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.head import Head, Start, SupportSet, normalize
from fewshot_blo.heads.linear import LinearHead
from fewshot_blo.kernel import Backend, Forward, for_tasks, make_forward
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.kernel.stacked.merged import MergedForward

_TAIL = "tail."

TailBackend = Backend | Literal["merged"]
"""How the tail runs for T tasks: by one of the kernel's backends, or, where it treats every
image by itself, with its frozen layers on the images of all tasks at once."""


class TailHead:
    """``head(tail(x))``: some of the tail's parameters adapt, and those of the head.

    So a shared encoder can be the first layers of a network, which run once a task, and the layers
    behind them take part in the inner problem: the last blocks, biases, low-rank updates. The tail
    starts from outer variables, the head from prototypes of the features that these give.

    Source: Triantafillou et al., "Proto-MAML" (arXiv 1903.03096), with fewer parameters adapted.

    Args:
        tail: from a flattened feature of the encoder, ``[B, D]``, to features ``[B, E]``. Batch
            norms use running statistics. What requires no gradient and does not adapt is constant.
        adapted: names of its parameters that adapt.
        features: E.
        head: on its features; linear by default.
        unit: divide features by their length, not by √E.
        backend: of the tail, as ``Choice`` finds it; "merged" is for a tail of ``split_network``.
        precision: of the tail's products.

    Raises:
        ConfigurationError: if a name is no parameter's, the head cannot start from prototypes, or
            the tail cannot be merged.
    """

    starts: ClassVar[tuple[Start, ...]] = ("prototypes",)
    prox: ClassVar[float] = 0.0
    scaled: ClassVar[bool] = False

    def __init__(
        self,
        tail: nn.Module,
        adapted: Collection[str],
        *,
        features: int,
        head: Head | None = None,
        unit: bool = False,
        backend: TailBackend = "batched",
        precision: Precision = "float32",
    ) -> None:
        self.head: Head = head or LinearHead()
        if "prototypes" not in self.head.starts:
            raise ConfigurationError(
                f"{type(self.head).__name__} cannot start from prototypes of an adapted tail: use "
                "a linear or a cosine head"
            )
        self.forward = _forward(tail, adapted, backend, precision)
        self.network = self.forward.network
        parameters = dict(self.network.named_parameters())
        unknown = sorted(set(adapted) - set(parameters))
        if unknown:
            raise ConfigurationError(
                f"'{unknown[0]}' is no parameter of the tail; they are {list(parameters)[:8]}"
            )
        self.adapted = tuple(adapted)
        self.features, self.unit = features, unit

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """The tail's parameters that adapt or require a gradient, and what the head learns."""
        del features
        own = {
            _TAIL + name: p.detach().clone()
            for name, p in self.network.named_parameters()
            if p.requires_grad or name in self.adapted
        }
        return {**own, **self.head.learned(self.features)}

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """There are none: a tail at zero gives no features.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError("an adapted tail cannot start at zeros: use prototypes")

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """The tail's outer variables, and the head's prototypes on the features they give."""
        tasks = len(support.features)
        start = {
            _TAIL + name: learned[_TAIL + name].expand(tasks, *learned[_TAIL + name].shape)
            for name in self.adapted
        }
        own = replace(support, features=self.adapted_features(start, support.features, learned))
        return {**start, **self.head.from_support(own, learned)}

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """The head's logits of the tail's features."""
        own = self.adapted_features(params, features, learned)
        return self.head.logits(params, own, learned, real)

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """The head's loss on the tail's features."""
        own = replace(support, features=self.adapted_features(params, support.features, learned))
        return self.head.loss(params, own, learned)

    def adapted_features(self, params: TaskParams, x: Tensor, learned: Params) -> Tensor:
        """Features ``[T, B, E]`` of ``[T, B, D]`` under the tasks' parameters."""
        stacked = {n.removeprefix(_TAIL): p for n, p in params.items() if n.startswith(_TAIL)}
        names = {n.removeprefix(_TAIL): p for n, p in learned.items() if n.startswith(_TAIL)}
        shared = {name: p for name, p in names.items() if name not in self.adapted}
        features = self.forward(stacked, shared, x, running=True)
        return normalize(features) if self.unit else features / self.features**0.5


def _forward(
    tail: nn.Module, adapted: Collection[str], backend: TailBackend, precision: Precision
) -> Forward | MergedForward:
    if backend != "merged":
        return make_forward(tail, for_tasks(tail), backend, precision)
    if not isinstance(tail, fx.GraphModule) or precision == "bfloat16":
        raise ConfigurationError(
            f"a {type(tail).__name__} in {precision} cannot be merged: that takes the tail that "
            "split_network cuts from a network, and no bfloat16; use the backend 'batched'"
        )
    return MergedForward(tail, adapted)
