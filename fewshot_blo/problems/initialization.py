"""``Initialization``: learning initial parameters from which a few steps solve a task (MAML)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from torch import Tensor, nn

from fewshot_blo.bilevel import Bilevel, TaskParams, task_dot
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.head import SupportSet
from fewshot_blo.heads.linear import LinearHead
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.kernel import (
    BackendChoice,
    Choice,
    Forward,
    Order,
    Sample,
    for_tasks,
    make_forward,
)
from fewshot_blo.kernel.adapt import at_step
from fewshot_blo.kernel.first_batch import FirstBatch
from fewshot_blo.kernel.outer_variables import OuterVariables
from fewshot_blo.kernel.precision import Precision, check_precision
from fewshot_blo.networks.parts import ENCODER, of_encoder
from fewshot_blo.objectives import AnyLoss, CrossEntropy, Metric, as_metric
from fewshot_blo.objectives.tasks import need_classes, on_query, on_support
from fewshot_blo.problems.adapted_parameters import HEAD_NAMES, adapted_names, check_head
from fewshot_blo.problems.few_shot import (
    BoundTasks,
    FewShotProblem,
    NormMode,
    first_keys,
    query_forward,
    real_rows,
    task_keys,
)
from fewshot_blo.problems.inner_batches import inner_batches
from fewshot_blo.problems.padding import repeated
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Natural, NonNegative
from fewshot_blo.records.shapes import size
from fewshot_blo.tasks import TaskBatch


@checked
class Initialization(FewShotProblem):
    """Learns initial parameters of a network, from which a few inner steps solve a task.

    Outer θ: initial parameters; inner φ_t: these parameters after adaptation to task t.
    ``F_t = L(query; φ)`` and ``G_t = L(support; φ) + prox/2 |φ - φ_0|²``, from ``φ_0 = θ``.
    Without a proximal term θ is in neither loss, and only Unroll has a hypergradient. With start
    "prototypes", the head of φ_0 is not an outer variable: it is computed from the task's class
    means c_n under θ, with logits ``-|x - c_n|² / D``. The way may then differ between tasks, and
    without inner steps the model is a ProtoNet.

    Source: MAML (arXiv 1703.03400); with the proximal term iMAML (arXiv 1909.04630); ANIL
    (arXiv 1909.09157) adapts the head only, BOIL (arXiv 2008.08882) the body only;
    from prototypes Proto-MAML (arXiv 1903.03096).

    Args:
        network: network from inputs to outputs, such as logits, any module; it is copied. Frozen
            parameters (``requires_grad`` false) do not change.
        loss: L, loss of the network's outputs and the targets; also a function of your own,
            ``(outputs, targets, rows) -> [T]``.
        metric: what validation measures, and the best variables are chosen by; by default
            accuracy for cross-entropy, and other losses themselves.
        prox: weight of the proximal term, at least 0.
        adapted: which parameters adapt to a task: "all"; "head" (ANIL) or "body" (BOIL) of a
            ``classifier``; "no_norms", all but those of norm layers (MAML++); or a prefix, or
            prefixes, of parameter names. The others are outer variables shared by all tasks.
        start: initial head: "learned" like the other parameters, or "prototypes", which needs a
            ``classifier``: a network of an ``encoder`` and a linear ``head`` that adapts.
        step_size: initial value of learned inner step sizes, for the rule ``LearnedSGD``: one for
            each adapted parameter tensor. None if step sizes are not learned.
        entry_steps: learn a step size for each entry of the parameters, as in Meta-SGD.
        own_steps: number of inner steps with learned step sizes of their own, as in MAML++; needs
            ``per_step`` of the rule. 0 shares the step sizes between all steps.
        inner_batch: support examples of a task that an inner step takes at most, in turn: with K
            shots of N way and B here, step s takes those of part s of K N / B, and part 0 follows
            the last. 0 takes all in every step.
        backend: how the network's forward pass runs for the tasks of a batch; "auto" chooses at the
            first batch.
        precision: number format of the network's matrix products and convolutions.
        prove: compare the kernel with ``network`` itself at the first batch.

    Raises:
        ConfigurationError: if no parameter adapts, ``prox`` or ``own_steps`` is negative, the
            network does not support ``start``, or its device or dtype does not support the
            precision.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        loss: AnyLoss = CrossEntropy(),
        metric: Metric | None = None,
        prox: NonNegative = 0.0,
        adapted: str | Sequence[str] = "all",
        start: Literal["learned", "prototypes"] = "learned",
        step_size: NonNegative | None = None,
        entry_steps: bool = False,
        own_steps: Annotated[int, AtLeast(0), AtMost(1000)] = 0,
        inner_batch: Natural = 0,
        backend: BackendChoice = "auto",
        precision: Precision = "float32",
        prove: bool = True,
    ) -> None:
        self.original, self.network = network, for_tasks(network)
        self._choice = FirstBatch(prove)
        self.loss = as_metric(loss)
        self.metric = metric or self.loss.usual_metric
        self.prox, self.inner_batch = prox, inner_batch
        self.backend = backend
        self.precision = precision
        trainable = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        adapting = adapted_names(network, adapted, list(trainable))
        self._from_prototypes = start == "prototypes"
        if self._from_prototypes:
            check_head(self.network, adapting)
        from_support = HEAD_NAMES if self._from_prototypes else ()
        learned = {name: p for name, p in trainable.items() if name not in from_support}
        self.adapted = [name for name in adapting if name in learned]
        check_precision(precision, trainable[adapting[0]])
        sizes: dict[str, Tensor] = {}
        if step_size is not None:
            for name in adapting:
                p = trainable[name]
                entries = p.shape if entry_steps else ()
                shape = ((own_steps,) if own_steps else ()) + tuple(entries)
                sizes[name] = p.new_full(shape, step_size).requires_grad_()
        self.outer: OuterVariables = OuterVariables(encoder=learned, step_sizes=sizes)

    def check_suits(self, strategy: Strategy, start: Literal["cold", "warm"]) -> None:
        """Checks that a strategy can train this problem.

        Raises:
            ConfigurationError: if there is nothing to learn, or with a warm start neither loss
                depends on the initialization.
        """
        super().check_suits(strategy, start)
        if start == "warm" and self.prox == 0:
            raise ConfigurationError(
                "with a warm start and prox 0, neither loss depends on the initialization: use a "
                "cold start, or prox above 0"
            )

    def __repr__(self) -> str:
        start = "prototypes" if self._from_prototypes else "learned"
        return (
            f"{type(self).__name__}({type(self.original).__name__}, head's start {start}, "
            f"prox {self.prox:g}, backend {self.backend}, {self.precision} products\n"
            f"  outer: {size(self.outer)}\n"
            f"  adapted: {size({name: self.outer[name] for name in self.adapted})})"
        )

    def prepare(self, batch: TaskBatch, *, derivatives: Order = "second") -> None:
        """Compares the kernel with ``original``, and chooses the backend if it is "auto".

        Raises:
            ConfigurationError: as in ``Choice``, or if tasks are padded and the network mixes rows.
        """
        tasks = repeated(batch[: min(batch.tasks, 4)])

        def sample() -> Sample:
            keys = first_keys(tasks)
            forward = make_forward(self.original, self.network, "reference", self.precision)
            start = {name: p.detach() for name, p in self._start(tasks, forward, keys).items()}
            return Sample(start, self._shared(), tasks.support_x, keys, derivatives)

        choice = Choice(self.original, self.network, self.precision)
        self.backend = self._choice(self.backend, choice, sample, derivatives)
        self._choice.check_rows(batch.padded)

    @property
    def rows_mix(self) -> bool:
        """Whether the network mixes the rows of a batch outside of batch norms."""
        return self._choice.rows_mix

    def bind(self, batch: TaskBatch, norm: NormMode, keys: Tensor | None = None) -> BoundTasks:
        """The bilevel problem of a batch of tasks.

        Raises:
            ConfigurationError: if the backend has not been chosen, or tasks are padded and the
                network mixes rows.
        """
        self._choice.check_rows(batch.padded)
        batch = repeated(batch)
        forward = make_forward(self.original, self.network, self.backend, self.precision)
        shared = self._shared()
        parts = inner_batches(batch, self.inner_batch)
        support_keys, query_keys = task_keys(batch, keys)
        start = self._start(batch, forward, support_keys)

        def inner_loss(phi: TaskParams) -> Tensor:
            part = parts()
            rows = real_rows(part, part.support_rows)
            outputs = forward(phi, shared, part.support_x, rows=rows, keys=support_keys)
            loss = on_support(self.loss, outputs, part)
            if self.prox == 0:
                return loss
            distance = {name: p - start[name] for name, p in phi.items()}
            return loss + 0.5 * self.prox * task_dot(distance, distance)

        def query_outputs(phi: TaskParams) -> Tensor:
            return query_forward(forward, phi, shared, batch, norm, query_keys)

        def outer_loss(phi: TaskParams) -> Tensor:
            return on_query(self.loss, query_outputs(phi), batch)

        bilevel = Bilevel(self.outer, start, inner_loss, outer_loss)
        return BoundTasks(bilevel, query_outputs, pullback=lambda gradient: gradient)

    def _start(self, batch: TaskBatch, forward: Forward, keys: Tensor) -> TaskParams:
        """φ_0 of every task, ``[T, ...]``: expanded views of θ, so gradients reach θ."""
        theta = {
            name: self.outer.encoder[name].expand(batch.tasks, *self.outer.encoder[name].shape)
            for name in self.adapted
        }
        if not self._from_prototypes:
            return theta
        need_classes(batch, "start prototypes", "use a learned start")
        encoder = of_encoder(self.outer.encoder.items())
        encode = forward.part(ENCODER)
        with at_step(0):
            rows = real_rows(batch, batch.support_rows)
            features = encode({}, encoder, batch.support_x, rows=rows, keys=keys)
        support = SupportSet(features, batch.support_y, batch.classes)
        head = LinearHead().from_support(support, {})
        return {**theta, **{name: p / features.shape[-1] for name, p in head.items()}}

    def _shared(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.outer.encoder.items() if n not in self.adapted}
