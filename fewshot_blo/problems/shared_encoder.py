"""Learning features on which a small head solves a new task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from fewshot_blo.backbones import Backbone
from fewshot_blo.bilevel import Bilevel, Params, TaskParams, task_dot
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.head import Head, Start, SupportSet, normalize
from fewshot_blo.heads.linear import LinearHead
from fewshot_blo.heads.losses import task_cross_entropy
from fewshot_blo.kernel import BackendChoice, Order, Sample, for_tasks, make_forward
from fewshot_blo.kernel.precision import Precision, check_precision
from fewshot_blo.kernel.statistics import uses_batch_statistics
from fewshot_blo.networks.views import COUNT, ImageViews, MeanOverViews, Views
from fewshot_blo.problems.encoding import Encoding
from fewshot_blo.problems.few_shot import BoundTasks, FirstBatch, NormMode, first_keys, real_rows
from fewshot_blo.problems.slices import cut
from fewshot_blo.records.shapes import size
from fewshot_blo.tasks import TaskBatch

FEATURES = "features"
_START = "start/"
_HEAD = "head/"
_LOG_PROX = "log_prox"


class SharedEncoder:
    """outer: an encoder shared by all tasks; inner: the weights v_t of each task's head.

    ``F_t = CE(query; v)`` and ``G_t = L(support; v) + prox/2 |v - start|²`` on the encoder's
    features, with the head's own loss L. The head's problem is small and, with a proximal term,
    strongly convex: all strategies have a hypergradient. Where the start is the solution in closed
    form, ``Unroll(0)`` has the exact one.

    Features are divided by ``sqrt(D)``, or by their length, so that the curvature of the head's
    problem, and the step size and ρ that suit it, do not depend on the width of the encoder.

    The encoder's outputs are the leaves that a strategy differentiates with respect to; one
    backward pass then carries that cotangent through the encoder. This is exact, and an outer step
    costs one pass through the encoder whatever the strategy does with the head.

    Source: Mehra & Hamm (arXiv 1911.03432), the few-shot experiment; starting from prototypes:
    Triantafillou et al., "Proto-MAML" (arXiv 1903.03096), and without inner steps Snell et al.,
    "Prototypical Networks" (arXiv 1703.05175).

    Args:
        encoder: any module from images to features ``[B, D]``; it is copied.
        head: of ``networks``; linear by default.
        prox: weight of the proximal term, which is l2 regularisation for a start at zero; the
            head's usual one by default.
        start: where the inner problem starts; the head's usual start by default.
        learn_prox: make the logarithm of ``prox`` an outer variable.
        unit: divide features by their length.
        way, features: N and D, needed for a learned start.
        backend: of the encoder's forward pass; "auto" chooses at the first batch.
        precision: of the encoder's products; the head's are in the parameters' dtype.
        slices: images encoded at a time, whose activations are made again in the backward pass, so
            that memory does not grow with their number; 0 keeps all. For encoders that treat every
            image by itself, as pretrained ones do.
        prove: compare the kernel with ``encoder`` itself at the first batch.

    Raises:
        ConfigurationError: if the settings contradict each other, or the parameters' device or
            dtype does not offer the precision.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: Head | None = None,
        *,
        prox: float | None = None,
        start: Start | None = None,
        learn_prox: bool = False,
        unit: bool = False,
        way: int | None = None,
        features: int | None = None,
        backend: BackendChoice = "auto",
        precision: Precision = "float32",
        slices: int = 0,
        prove: bool = True,
    ) -> None:
        self.original, self.network = encoder, for_tasks(encoder)
        self._choice = FirstBatch(prove)
        self.views = ImageViews("one")
        self.head: Head = head or LinearHead()
        self.start: Start = start or self.head.starts[0]
        self.prox = self.head.prox if prox is None else prox
        self.backend, self.precision, self.unit, self.slices = backend, precision, unit, slices
        if slices < 0 or (slices and uses_batch_statistics(self.network)):
            raise ConfigurationError(
                f"slices is {slices}: it is a number of images, and 0 for a network whose batch "
                "norms take their statistics from all of them"
            )
        if self.prox < 0 or (learn_prox and self.prox == 0):
            raise ConfigurationError(
                f"prox is {self.prox}: it must be positive to be learned, and never negative"
            )
        if unit and not self.head.scaled:
            raise ConfigurationError(
                f"{type(self.head).__name__} takes the encoder's features as they are: unit is a "
                "setting of its own"
            )
        if self.start not in self.head.starts:
            raise ConfigurationError(
                f"{type(self.head).__name__} cannot start from '{self.start}': use one of "
                f"{', '.join(self.head.starts)}"
            )
        self._encoder = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        self.outer: dict[str, Tensor] = dict(self._encoder)
        learned = self.head.learned(features)
        example = next(chain(self.network.parameters(), learned.values()), torch.zeros(()))
        check_precision(precision, example)
        if self.start == "learned":
            self.outer.update(self._learned_start(example, way, features))
        if learn_prox:
            self.outer[_LOG_PROX] = example.new_tensor(self.prox).log().requires_grad_()
        for name, value in learned.items():
            self.outer[_HEAD + name] = value.to(example).requires_grad_()

    def __repr__(self) -> str:
        learned = " at the start, learned" if _LOG_PROX in self.outer else ""
        return (
            f"{type(self).__name__}({type(self.original).__name__}, {type(self.head).__name__} "
            f"from {self.start}, prox {self.prox:g}{learned}, backend {self.backend}, "
            f"{self.precision} products\n  outer: {size(self.outer)})"
        )

    def _learned_start(
        self, example: Tensor, way: int | None, features: int | None
    ) -> dict[str, Tensor]:
        if way is None or features is None:
            raise ConfigurationError(
                f"a learned start needs way and features; they are {way} and {features}"
            )
        zeros = self.head.zeros(1, way, example.new_zeros(1, 1, features))
        return {
            _START + name: (0.01 * torch.randn_like(p[0])).detach().requires_grad_()
            for name, p in zeros.items()
        }

    def prepare(self, batch: TaskBatch, *, derivatives: Order = "second") -> None:
        """Compares the kernel with ``original``, and chooses the backend where it is "auto".

        Raises:
            ConfigurationError: as ``Choice``.
        """
        tasks = batch[: min(batch.tasks, 4)]

        def sample() -> Sample:
            images = cut(tasks.query_x, self.slices)[0] if self.slices else tasks.query_x
            return Sample({}, self._encoder, images, first_keys(tasks), derivatives)

        self._choice(self, sample, derivatives)

    def bind(self, batch: TaskBatch, norm: NormMode, keys: Tensor | None = None) -> BoundTasks:
        """Encodes a batch of tasks and states the heads' bilevel problem on the features.

        Raises:
            ConfigurationError: if the backend has not been chosen.
        """
        support, query = self._encoding()(batch, norm, keys)
        encoded = torch.cat([support, query], 1)
        if self.head.scaled:
            encoded = normalize(encoded) if self.unit else encoded / support.shape[-1] ** 0.5
        # One leaf, not two: for some strategies the support features alone are in neither loss.
        leaf = encoded.detach().requires_grad_()
        support_leaf, query_leaf = torch.split(leaf, [support.shape[1], query.shape[1]], 1)
        own = {n: p for n, p in self.outer.items() if n not in self._encoder}
        learned = {n.removeprefix(_HEAD): p for n, p in own.items() if n.startswith(_HEAD)}
        support_set = SupportSet(support_leaf, batch.support_y, batch.classes)
        start = self._start(support_set, learned)
        real = (batch.classes >= 0).to(leaf.dtype)
        prox: Tensor | float = own[_LOG_PROX].exp() if _LOG_PROX in own else self.prox

        def inner_loss(v: TaskParams) -> Tensor:
            loss = self.head.loss(v, support_set, learned)
            if self.prox == 0:
                return loss
            distance = {name: p - start[name] for name, p in v.items()}
            for name in distance:
                if name.startswith("head."):  # [T, N, ...]: a padded class has no weights.
                    mask = real.reshape(*real.shape, *[1] * (distance[name].ndim - 2))
                    distance[name] = distance[name] * mask
            return loss + 0.5 * prox * task_dot(distance, distance)

        def query_logits(v: TaskParams) -> Tensor:
            return self.head.logits(v, query_leaf, learned, real_rows(batch, batch.query_y))

        def outer_loss(v: TaskParams) -> Tensor:
            return task_cross_entropy(query_logits(v), batch.query_y, batch.classes)

        def pullback(gradient: Params) -> Params:
            rest = {name: gradient[name] for name in own}
            if not self._encoder:
                return rest
            encoder = torch.autograd.grad(
                encoded, list(self._encoder.values()), gradient[FEATURES], materialize_grads=True
            )
            return {**dict(zip(self._encoder, encoder, strict=True)), **rest}

        bilevel = Bilevel({FEATURES: leaf, **own}, start, inner_loss, outer_loss)
        return BoundTasks(bilevel, query_logits, pullback)

    def on_features(self) -> SharedEncoder:
        """The same heads on batches that hold this encoder's features in place of images."""
        on_features = copy.copy(self)
        on_features.original = on_features.network = nn.Identity()
        on_features.views, on_features._choice = ImageViews("one"), FirstBatch(prove=False)
        on_features._encoder = {}
        on_features.outer = {n: p for n, p in self.outer.items() if n not in self._encoder}
        on_features.backend, on_features.slices = "batched", 0
        return on_features

    def with_views(self, views: Views) -> SharedEncoder:
        """The same problem on means of the features of several views of an image.

        A ``Backbone`` makes its own views.

        Raises:
            ConfigurationError: if another network than a ``Backbone`` is to see three sizes.
        """
        changed = copy.copy(self)
        if isinstance(self.network, Backbone):
            assert isinstance(self.original, Backbone)
            changed.original = self.original.with_views(views)
            changed.network = self.network.with_views(views)
        elif views == "scales":
            raise ConfigurationError(
                f"views is scales, and the encoder is a {type(self.network).__name__}: only a "
                f"Backbone resizes images; use {', '.join(v for v in COUNT if v != views)}"
            )
        else:
            changed.views = ImageViews(views)
        return changed

    @property
    def embedder(self) -> nn.Module:
        """From images to the mean features of their views, where no image's depend on others."""
        if self.views.views == "one":
            return self.network
        mean = MeanOverViews(COUNT[self.views.views], unit=False)
        return nn.Sequential(self.views, self.network, mean)

    def _encoding(self) -> Encoding:
        forward = make_forward(self.original, self.network, self.backend, self.precision)
        return Encoding(forward, self._encoder, self.slices, self.views)

    def _start(self, support: SupportSet, learned: Params) -> TaskParams:
        tasks, way = support.classes.shape
        if self.start in ("prototypes", "closed_form"):
            return self.head.from_support(support, learned)
        if self.start == "zeros":
            return self.head.zeros(tasks, way, support.features)
        start: Mapping[str, Tensor] = {
            n.removeprefix(_START): p for n, p in self.outer.items() if n.startswith(_START)
        }
        return {name: p.expand(tasks, *p.shape) for name, p in start.items()}
