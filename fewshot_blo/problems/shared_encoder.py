"""``SharedEncoder``: learning features on which each task trains a small head."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from fewshot_blo.bilevel import Bilevel, Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.head import Head, Start, normalize
from fewshot_blo.heads.linear import LinearHead
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.kernel import BackendChoice, Choice, Order, Sample, for_tasks, make_forward
from fewshot_blo.kernel.first_batch import FirstBatch
from fewshot_blo.kernel.outer_variables import OuterVariables
from fewshot_blo.kernel.precision import Precision, check_precision
from fewshot_blo.networks.parts import centred
from fewshot_blo.networks.views import COUNT, ImageViews, MeanOverViews, Views, with_own_views
from fewshot_blo.objectives import AnyLoss, CrossEntropy, Metric, as_metric
from fewshot_blo.objectives.tasks import on_query
from fewshot_blo.problems.encoding import Encoding
from fewshot_blo.problems.few_shot import BoundTasks, FewShotProblem, NormMode, first_keys
from fewshot_blo.problems.padding import repeated
from fewshot_blo.problems.passes import Adapted, ForwardPass, example_passes
from fewshot_blo.problems.slices import NEEDS_ALL, check_slices, cut
from fewshot_blo.problems.task_heads import TaskHeads, check_head, learned_start
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, NonNegative
from fewshot_blo.records.shapes import size
from fewshot_blo.tasks import TaskBatch, TaskSource


@checked
class SharedEncoder(FewShotProblem):
    """Learns an encoder shared by all tasks, on whose features each task trains its own head.

    Outer: the encoder; inner: the parameters v_t of each task's head.
    ``F_t = L(query; v)`` and ``G_t = l(support; v) + prox/2 |v - start|²`` on the encoder's
    features, with the head's loss l. The head's problem is small and, with a proximal term and a
    convex l, strongly convex: all strategies have a hypergradient. If the start is the solution in
    closed form, that of ``Unroll(0)`` is exact.

    Features are divided by ``sqrt(D)``, or by their length, so that the curvature of the head's
    problem, and the suitable step size and ρ, do not depend on the width of the encoder.

    Strategies differentiate with respect to the encoder's outputs; one vector-Jacobian product
    then backpropagates this gradient through the encoder. This is exact, and an outer step costs
    one forward and one backward pass of the encoder, whatever the strategy does with the head.

    Source: Mehra & Hamm (arXiv 1911.03432), the few-shot experiment; starting from prototypes:
    Triantafillou et al., "Proto-MAML" (arXiv 1903.03096), and without inner steps Snell et al.,
    "Prototypical Networks" (arXiv 1703.05175).

    Args:
        encoder: network from inputs to features ``[B, D]``, any module; it is copied.
        head: classifier of each task, whose weights are inner parameters; linear by default.
        loss: L of the query set; also a function of your own, ``(outputs, targets, rows) -> [T]``.
            That of the support set is the head's.
        metric: what validation measures, and the best variables are chosen by; by default
            accuracy for cross-entropy, and other losses themselves.
        prox: weight of the proximal term, at least 0; with start "zeros" it is l2 regularization.
            The head's default if not given.
        start: initial parameters of the head: "prototypes", "zeros", "closed_form" or "learned";
            the head's default if not given.
        learn_prox: make the logarithm of ``prox`` an outer variable.
        unit: normalize features to unit length instead of dividing them by ``sqrt(D)``.
        centre: subtract the mean feature of the training images, outside of training; it needs
            ``features``.
        way: N, number of classes in a task, or of outputs of a task without classes; needed for a
            learned start.
        features: D, number of the encoder's features, needed for a learned start, a centre and
            some heads.
        backend: how the encoder's forward pass runs for the tasks of a batch; "auto" chooses at the
            first batch.
        precision: number format of the encoder's matrix products and convolutions; the head's are
            in the parameters' dtype.
        slices: number of images encoded at a time, with activation checkpointing, so that memory
            does not grow with the number of images; 0 for all. Needs an encoder without batch
            statistics, such as a pretrained one.
        prove: compare the kernel with ``encoder`` itself at the first batch.

    Raises:
        ConfigurationError: if the settings contradict each other, or the parameters' device or
            dtype does not offer the precision.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: Head = LinearHead(),
        *,
        loss: AnyLoss = CrossEntropy(),
        metric: Metric | None = None,
        prox: NonNegative | None = None,
        start: Start | None = None,
        learn_prox: bool = False,
        unit: bool = False,
        centre: bool = False,
        way: Counting | None = None,
        features: Counting | None = None,
        backend: BackendChoice = "auto",
        precision: Precision = "float32",
        slices: Natural = 0,
        prove: bool = True,
    ) -> None:
        if centre:
            if features is None:
                raise ConfigurationError("a centre needs features, the number D of them")
            encoder = centred(encoder, features)
        self.original, self.network = encoder, for_tasks(encoder)
        self._choice = FirstBatch(prove)
        self.views = ImageViews("one")
        self.head: Head = head
        self.loss = as_metric(loss)
        self.metric = metric or self.loss.usual_metric
        self.start: Start = start or self.head.starts[0]
        self.prox = self.head.prox if prox is None else prox
        self.backend, self.precision, self.unit, self.slices = backend, precision, unit, slices
        check_slices(self.network, slices)
        check_head(self.head, self.start, self.prox, learn_prox=learn_prox, unit=unit)
        learned = self.head.learned(features)
        example = next(chain(self.network.parameters(), learned.values()), torch.zeros(()))
        check_precision(precision, example)
        self.outer: OuterVariables = OuterVariables(
            encoder={n: p for n, p in self.network.named_parameters() if p.requires_grad},
            start=learned_start(self.head, example, way, features)
            if self.start == "learned"
            else {},
            regularisation=(
                example.new_tensor(self.prox).log().requires_grad_() if learn_prox else None
            ),
            head={name: value.to(example).requires_grad_() for name, value in learned.items()},
        )

    def __repr__(self) -> str:
        learned = " at the start, learned" if self.outer.regularisation is not None else ""
        return (
            f"{type(self).__name__}({type(self.original).__name__}, {type(self.head).__name__} "
            f"from {self.start}, prox {self.prox:g}{learned}, backend {self.backend}, "
            f"{self.precision} products\n  outer: {size(self.outer)})"
        )

    def check_suits(self, strategy: Strategy, start: Literal["cold", "warm"]) -> None:
        """Checks that a strategy can train this problem.

        Raises:
            ConfigurationError: if there is nothing to learn, or the strategy needs a minimizer of
                the inner loss and the head's parameters are computed in closed form instead.
        """
        super().check_suits(strategy, start)
        if self.head.starts == ("closed_form",) and strategy.needs_minimiser:
            raise ConfigurationError(
                f"{type(strategy).__name__} needs minimizers of the inner loss, but the parameters "
                f"of {type(self.head).__name__} are a closed form of the support set: use Unroll "
                "with 0 steps"
            )

    def prepare(self, batch: TaskBatch, *, derivatives: Order = "second") -> None:
        """Compares the kernel with ``original``, and chooses the backend if it is "auto".

        Then prepares the head on the features of the batch.

        Raises:
            ConfigurationError: as in ``Choice``, or if the encoder mixes rows and tasks are padded
                or ``slices`` is set.
        """
        tasks = repeated(batch[: min(batch.tasks, 4)])

        def sample() -> Sample:
            inputs = cut(tasks.query_x, self.slices)[0] if self.slices else tasks.query_x
            return Sample({}, self.outer.encoder, inputs, first_keys(tasks), derivatives)

        choice = Choice(self.original, self.network, self.precision)
        self.backend = self._choice(self.backend, choice, sample, derivatives)
        self._choice.check_rows(batch.padded)
        if self.slices and self.rows_mix:
            raise ConfigurationError(NEEDS_ALL.format(self.slices, "mixes the rows of a batch"))

        def features() -> Tensor:
            with torch.no_grad():
                return self._features(tasks, "transductive", first_keys(tasks))

        self.head.prepare(features, derivatives)

    @property
    def rows_mix(self) -> bool:
        """Whether the encoder mixes the rows of a batch outside of batch norms."""
        return self._choice.rows_mix

    def bind(self, batch: TaskBatch, norm: NormMode, keys: Tensor | None = None) -> BoundTasks:
        """Encodes a batch of tasks and states the heads' bilevel problem on the features.

        Raises:
            ConfigurationError: if the backend has not been chosen, or tasks are padded and the
                encoder mixes rows.
        """
        self._choice.check_rows(batch.padded)
        encoded = self._features(batch, norm, keys)
        leaf = encoded.detach().requires_grad_()
        encoder, own = self.outer.encoder, replace(self.outer, encoder={}, features=leaf)
        heads = TaskHeads(self.head, self.start, self.prox, own, leaf, batch)

        def outer_loss(v: TaskParams) -> Tensor:
            return self._outer_loss(heads, v)

        def pullback(gradient: Params) -> Params:
            found = OuterVariables.grouped(gradient)
            given: dict[str, Tensor] = {}
            if encoder:
                leaves = list(encoder.values())
                gradients = torch.autograd.grad(
                    encoded, leaves, found.features, materialize_grads=True
                )
                constants = (g.detach() for g in gradients)
                given = dict(zip(encoder, constants, strict=True))
            return dict(replace(found, features=None, encoder=given))

        bilevel = Bilevel(own, heads.initial, heads.inner_loss, outer_loss)
        return BoundTasks(bilevel, heads.query_outputs, pullback)

    def _outer_loss(self, heads: TaskHeads, v: TaskParams) -> Tensor:
        """F_t at inner parameters v, ``[T]``."""
        return on_query(self.loss, heads.query_outputs(v), heads.batch)

    def _features(self, batch: TaskBatch, norm: NormMode, keys: Tensor | None) -> Tensor:
        """Scaled features of the support and query sets, ``[T, N*K + N*Q, D]``."""
        encoded = torch.cat(self._encoding()(repeated(batch), norm, keys), 1)
        if not self.head.scaled:
            return encoded
        return normalize(encoded) if self.unit else encoded / encoded.shape[-1] ** 0.5

    def on_features(self) -> SharedEncoder:
        """The same problem on batches with this encoder's features in place of images."""
        on_features = copy.copy(self)
        on_features.original = on_features.network = nn.Identity()
        on_features.views, on_features._choice = ImageViews("one"), FirstBatch(prove=False)
        on_features.outer = replace(self.outer, encoder={})
        on_features.backend, on_features.slices = "batched", 0
        return on_features

    def with_views(self, views: Views) -> SharedEncoder:
        """The same problem with features averaged over several views of an image.

        Raises:
            ConfigurationError: if ``views`` is "scales" and the encoder is not a ``Backbone``.
        """
        changed = copy.copy(self)
        original, network = (with_own_views(n, views) for n in (self.original, self.network))
        if original is not None and network is not None:
            changed.original, changed.network = original, network
        elif views == "scales":
            raise ConfigurationError(
                f"views is scales, but the encoder is a {type(self.network).__name__}: only a "
                f"Backbone resizes images; use {', '.join(v for v in COUNT if v != views)}"
            )
        else:
            changed.views = ImageViews(views)
        return changed

    def statistics_passes(self, tasks: TaskSource, adapted: Adapted) -> Iterator[ForwardPass]:
        """Forward passes on images of all classes: the encoder does not adapt to tasks."""
        del adapted
        device = next(iter(self.outer.values())).device
        return example_passes(self.network, tasks, device)

    @property
    def embedder(self) -> nn.Module:
        """Network from images ``[B, ...]`` to features ``[B, D]``, averaged over their views."""
        if self.views.views == "one":
            return self.network
        mean = MeanOverViews(COUNT[self.views.views], unit=False)
        return nn.Sequential(self.views, self.network, mean)

    def _encoding(self) -> Encoding:
        forward = make_forward(self.original, self.network, self.backend, self.precision)
        return Encoding(forward, self.outer.encoder, self.slices, self.views)
