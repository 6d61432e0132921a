"""The last layers of a network, adapted to each task together with a head on their features."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx, nn

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.head import Head, Start, SupportSet, normalize
from fewshot_blo.heads.linear import LinearHead
from fewshot_blo.kernel import (
    Backend,
    Choice,
    Forward,
    Order,
    Sample,
    for_tasks,
    make_forward,
)
from fewshot_blo.kernel.first_batch import FirstBatch
from fewshot_blo.kernel.precision import Precision
from fewshot_blo.kernel.stacked.merged import MergedForward
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting

_TAIL = "tail."

TailBackend = Backend | Literal["merged"]
"""How the tail runs for T tasks: by one of the kernel's backends, or "merged", with its frozen
layers on the images of all tasks at once, if it treats every image independently."""


@checked
class TailHead(Head):
    """``head(tail(x))``, where the head's parameters and some of the tail's adapt to each task.

    The shared encoder is then the first layers of a network, which run once per task; the inner
    problem contains the layers after them: the last blocks, biases or low-rank updates. The tail
    starts from outer variables, the head from prototypes of the tail's features.

    Source: Triantafillou et al., "Meta-Dataset" (arXiv 1903.03096), the Proto-MAML method, with
    fewer parameters adapted.

    Args:
        tail: network from a flattened feature of the encoder, ``[B, D]``, to features ``[B, E]``;
            it is copied. Batch norms use running statistics. Parameters that neither require a
            gradient nor adapt are constant.
        adapted: names of the tail's parameters that adapt.
        features: E, number of the tail's features.
        head: classifier on the tail's features; linear by default.
        unit: divide features by their length instead of √E.
        backend: how the tail runs for the tasks of a batch; "auto" chooses at the first batch, and
            "merged" is for a tail of ``split_network``.
        precision: number format of the tail's products.
        prove: compare the kernel with ``tail`` itself at the first batch, unless it runs merged.

    Raises:
        ConfigurationError: if a name is not a parameter of the tail, the head cannot start from
            prototypes, or the tail cannot be merged.
    """

    starts: ClassVar[tuple[Start, ...]] = ("prototypes",)
    scaled: ClassVar[bool] = False

    def __init__(
        self,
        tail: nn.Module,
        adapted: Collection[str],
        *,
        features: Counting,
        head: Head | None = None,
        unit: bool = False,
        backend: TailBackend | Literal["auto"] = "auto",
        precision: Precision = "float32",
        prove: bool = True,
    ) -> None:
        self.head: Head = head or LinearHead()
        if "prototypes" not in self.head.starts:
            raise ConfigurationError(
                f"{type(self.head).__name__} cannot start from prototypes of an adapted tail: use "
                "a linear or a cosine head"
            )
        self.original = tail
        self.precision: Precision = precision
        self.backend: TailBackend | Literal["auto"] = backend
        self.forward: Forward | MergedForward | None = None
        self._choice = FirstBatch(prove)
        if backend == "merged":
            self.forward = _merged(tail, adapted, precision)
            self.network = self.forward.network
        else:
            self.network = for_tasks(tail)
            if backend != "auto":
                self.forward = make_forward(tail, self.network, backend, precision)
        parameters = dict(self.network.named_parameters())
        unknown = sorted(set(adapted) - set(parameters))
        if unknown:
            raise ConfigurationError(
                f"'{unknown[0]}' is not a parameter of the tail: use some of {list(parameters)[:8]}"
            )
        self.adapted = tuple(adapted)
        self.features, self.unit = features, unit

    def prepare(self, features: Callable[[], Tensor], derivatives: Order) -> None:
        """Compares the kernel with ``original``, and chooses the backend if it is "auto".

        Args:
            features: returns the features of the first batch, ``[T, B, D]``.
            derivatives: highest order of derivatives that is needed.

        Raises:
            ConfigurationError: as ``Choice``.
        """
        if self.backend == "merged":
            return

        def sample() -> Sample:
            x = features().detach()
            own = dict(self.network.named_parameters())
            adapted = jittered({name: own[name] for name in self.adapted}, len(x))
            shared = {n: p for n, p in own.items() if p.requires_grad and n not in self.adapted}
            keys = torch.arange(len(x), device=x.device)
            return Sample(adapted, shared, x, keys, derivatives, running=True)

        choice = Choice(self.original, self.network, self.precision)
        self.backend = self._choice(self.backend, choice, sample, derivatives)
        self.forward = make_forward(self.original, self.network, self.backend, self.precision)

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """The tail's parameters that adapt or require gradients, and the head's outer variables."""
        del features
        own = {
            _TAIL + name: p.detach().clone()
            for name, p in self.network.named_parameters()
            if p.requires_grad or name in self.adapted
        }
        return {**own, **self.head.learned(self.features)}

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """Not supported: a tail with zero parameters has no features.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError("an adapted tail cannot start at zeros: use prototypes")

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """The tail's outer variables, and the head's prototypes of the tail's features."""
        tasks = len(support.features)
        start = {
            _TAIL + name: learned[_TAIL + name].expand(tasks, *learned[_TAIL + name].shape)
            for name in self.adapted
        }
        return {**start, **self.class_weights(start, support, learned)}

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """The head's logits of the tail's features, ``[T, B, N]``."""
        own = self.adapted_features(params, features, learned)
        return self.head.logits(params, own, learned, real)

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """The head's loss on the tail's features, ``[T]``."""
        own = replace(support, features=self.adapted_features(params, support.features, learned))
        return self.head.loss(params, own, learned)

    def layers(self, params: TaskParams) -> TaskParams:
        """The tail's parameters that adapt."""
        return {name: params[_TAIL + name] for name in self.adapted}

    def unadapted(self, features: Tensor) -> Tensor:
        """The tail's features with its initial parameters, ``[B, E]``."""
        found: Tensor = self.network(features)
        return found

    def class_weights(self, params: TaskParams, support: SupportSet, learned: Params) -> TaskParams:
        """The head's prototypes of the tail's features."""
        own = self.adapted_features(params, support.features, learned)
        return self.head.from_support(replace(support, features=own), learned)

    def linear(self, params: TaskParams, learned: Params) -> tuple[Tensor, Tensor]:
        """The head's weights and biases, which apply to the tail's features."""
        return self.head.linear(params, learned)

    def adapted_features(self, params: TaskParams, x: Tensor, learned: Params) -> Tensor:
        """Features ``[T, B, E]`` of ``[T, B, D]`` with each task's parameters.

        Raises:
            ConfigurationError: if the backend has not been chosen.
        """
        if self.forward is None:
            raise ConfigurationError(
                "the backend of the tail is not chosen yet: call prepare(batch) of the problem "
                "first, or set backend"
            )
        shared = {
            name: learned[_TAIL + name]
            for name, _ in self.network.named_parameters()
            if name not in self.adapted and _TAIL + name in learned
        }
        features = self.forward(self.layers(params), shared, x, running=True)
        return normalize(features) if self.unit else features / self.features**0.5


def jittered(parameters: Params, tasks: int) -> TaskParams:
    """Different parameters for each task, near the given ones, so that a mix-up of tasks shows.

    Args:
        parameters: parameters without a task axis.
        tasks: T.
    """
    found = {}
    generator = torch.Generator().manual_seed(0)
    for name, p in parameters.items():
        size = 0.1 * p.detach().abs().mean() + 0.01
        noise = torch.randn(tasks, *p.shape, generator=generator).to(p)
        found[name] = p.detach() + size * noise
    return found


def _merged(tail: nn.Module, adapted: Collection[str], precision: Precision) -> MergedForward:
    if not isinstance(tail, fx.GraphModule) or precision == "bfloat16":
        raise ConfigurationError(
            f"a {type(tail).__name__} in {precision} cannot be merged: backend 'merged' needs the "
            "tail of split_network, not in bfloat16; use backend 'batched'"
        )
    return MergedForward(tail, adapted)
