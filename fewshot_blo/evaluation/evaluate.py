"""``evaluate``: accuracy, or another metric, on held-out tasks; ``embed``: features of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fewshot_blo.errors import SINGULAR, ConfigurationError, DivergenceError
from fewshot_blo.evaluation.counts import Counts, Tally
from fewshot_blo.evaluation.parts import part_of
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.kernel import SGD, InnerSteps, adapt
from fewshot_blo.kernel.forward import TaskForward, only_tensor
from fewshot_blo.kernel.interception import kernel_forward
from fewshot_blo.kernel.layers import NO_ROWS, ForwardContext
from fewshot_blo.kernel.precision import Precision, forward_precision, product_precision
from fewshot_blo.kernel.proof import Sample
from fewshot_blo.kernel.purity import call_alone
from fewshot_blo.kernel.row_check import rows_mix
from fewshot_blo.kernel.statistics import has_statistics, uses_batch_statistics
from fewshot_blo.machine.chunk import Chunk, at_a_time
from fewshot_blo.networks.views import Views
from fewshot_blo.objectives import Metric
from fewshot_blo.objectives.tasks import on_query
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.records.checked import checked
from fewshot_blo.records.progress import Progress
from fewshot_blo.records.ranges import Counting, Natural
from fewshot_blo.records.shard import Shard
from fewshot_blo.tasks import TaskBatch, TaskSource
from fewshot_blo.tasks.inputs import Inputs, as_inputs, each, one_of

_IMAGES = 256
_FEW = 6


ADAPTATION = InnerSteps(10, SGD(0.5))
"""Default adaptation to a task at test time: inner steps on the loss of its support set."""


@checked
def evaluate(
    problem: FewShotProblem,
    source: TaskSource,
    *,
    tasks: Counting = 600,
    norm: NormMode = "transductive",
    adaptation: InnerSteps = ADAPTATION,
    chunk: Natural = 0,
    embeddings: Tensor | None = None,
    views: Views = "one",
    metrics: Sequence[Metric] = (),
    shard: Shard | None = None,
    progress: bool = False,
) -> Evaluation:
    """Adapts to the support set of each task, and measures the outputs on its query set.

    The metric is the problem's: accuracy by default. The tasks are the source's first ``tasks``
    tasks, so models evaluated with samplers of the same seed see the same tasks. If no feature
    depends on other examples (running statistics, or no batch statistics), a shared encoder embeds
    the source's ``pool`` once and tasks use the embeddings.

    Args:
        problem: trained problem.
        source: source of the test tasks; its batch size does not matter.
        tasks: number of tasks.
        norm: source of the batch norm statistics on the query set.
        adaptation: inner steps that adapt to a task.
        chunk: number of tasks adapted at a time; 0 measures how many fit into memory. Results do
            not depend on it, up to rounding.
        embeddings: features ``[M, D]`` of all examples of the source's ``pool``, from ``embed``;
            by default they are computed where possible.
        views: views of an image, over which a shared encoder's features are averaged.
        metrics: further metrics, with names of their own, for ``Evaluation.others``.
        shard: the part of the tasks that is evaluated, for ``merge`` with the other parts; None
            for all.
        progress: show a progress bar, or lines where there is no terminal.

    Raises:
        ConfigurationError: if ``tasks`` is not positive, ``chunk`` is negative, running statistics
            have not been estimated, views or embeddings are given for a problem without features
            or are combined, a single task does not fit into memory, the shard has no task, or two
            metrics have one name.
        DivergenceError: if the logits of a task are not finite after the inner steps.
    """
    if norm == "running" and not has_statistics(problem.network):
        raise ConfigurationError(
            "norm is running, but running statistics have not been estimated (train estimates "
            "them): call update_statistics, or use another norm mode"
        )
    if views != "one":
        if embeddings is not None:
            raise ConfigurationError(
                f"views is {views}, but embeddings are given, whose views are fixed: leave them "
                "out, or embed with problem.with_views(views).embedder and set views to one"
            )
        problem = problem.with_views(views)
    names = [metric.name for metric in metrics]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(
            f"metrics has several called '{twice[0]}', and results are by name: evaluate one at a "
            "time, or name a FunctionMetric by its label"
        )
    numbers = range(tasks) if shard is None else shard.within(tasks)
    if not numbers:
        raise ConfigurationError(
            f"shard is {shard} and tasks is {tasks}, which leaves it none: use at most {tasks} "
            "parts"
        )
    network = problem.network
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), product_precision(problem.precision, _device(problem)):
            if embeddings is None:
                embeddings = _embeddings(problem, source, norm, progress)
            values, counts = _scores(
                problem, source, numbers, norm, adaptation, metrics, chunk, embeddings, progress
            )
    finally:
        network.train(was_training)
    episodes = f"{source.describe()}, seed {source.seed}"
    return Evaluation(
        norm,
        episodes,
        adaptation.most,
        values[0],
        _names(source, counts),
        counts,
        problem.precision,
        views,
        None if shard is None else part_of(shard, tasks, problem, source, adaptation),
        problem.metric.quantity,
        {metric.quantity: own for metric, own in zip(metrics, values[1:], strict=True)},
    )


def _scores(
    problem: FewShotProblem,
    source: TaskSource,
    numbers: range,
    norm: NormMode,
    adaptation: InnerSteps,
    others: Sequence[Metric],
    chunk: int,
    embeddings: Tensor | None,
    progress: bool,
) -> tuple[Tensor, Counts]:
    """Metrics of each task ``[metrics, tasks]``, on the CPU, and counts over all queries."""
    metrics = (problem.metric, *others)
    start, tasks = numbers.start, len(numbers)
    if embeddings is not None:
        problem = problem.on_features()
    first = source.between(start, start + min(tasks, 4), embeddings)
    problem.prepare(first, derivatives="first")
    tally, device = Tally(first.device), first.device
    bar = Progress(f"evaluating ({norm})", tasks, "task", shown=progress)

    def score(part: slice) -> tuple[Tensor, Tensor]:
        """Metrics of tasks, and whether their outputs are finite, without a host sync."""
        batch = source.between(start + part.start, start + part.stop, embeddings)
        outputs = adapted(problem, batch, norm, adaptation)()
        values = torch.stack([on_query(metric, outputs, batch).double() for metric in metrics])
        # Counts come last: if memory runs out earlier, these tasks are scored again.
        if problem.metric.needs_classes:
            tally.add(outputs, batch)
        bar.advance(batch.tasks)
        return values, outputs.isfinite().all()

    size = chunk or at_a_time(
        lambda: adapted(problem, first[:1], norm, adaptation)(), tasks, device
    )
    with bar:
        values, finite = zip(*Chunk(size).run(score, tasks, device), strict=True)
    if not torch.stack(finite).all():
        raise DivergenceError(
            f"evaluation: outputs of a task are not finite after {adaptation.steps} inner steps "
            f"of {adaptation.rule}: lower the step size or the number of steps of the adaptation"
            f"{SINGULAR}"
        )
    return torch.cat(values, 1).cpu(), tally.counts()


def _embeddings(
    problem: FewShotProblem, source: TaskSource, norm: NormMode, progress: bool
) -> Tensor | None:
    """Features of the pool ``[M, D]``; None without one, or if they may depend on each other."""
    alone = norm == "running" or not uses_batch_statistics(problem.network)
    embedder, pool = problem.embedder, source.pool
    if not alone or embedder is None or pool is None or _mixes(embedder, pool, source.dtype):
        return None
    return embed(embedder, pool, source.dtype, problem.precision, progress=progress)


def _mixes(embedder: nn.Module, pool: Inputs, dtype: torch.dtype) -> bool:
    """Whether features of some examples depend on others in their batch."""
    device = next((p.device for p in embedder.parameters()), one_of(pool).device)
    x = each(lambda x: as_inputs(x[:_FEW], device, dtype).unsqueeze(0), pool)
    sample = Sample({}, {}, x, torch.zeros(1, dtype=torch.int64, device=device), "first")
    return rows_mix(TaskForward(embedder, "loop"), sample)


def _names(source: TaskSource, counts: Counts) -> list[str]:
    """Names of the classes that were drawn; numbers if they have none."""
    drawn: list[int] = counts.classes.tolist()
    return [source.class_names[c] for c in drawn] if source.class_names else list(map(str, drawn))


def _device(problem: FewShotProblem) -> torch.device:
    tensors = (*problem.outer.values(), *problem.network.parameters())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def adapted(
    problem: FewShotProblem, batch: TaskBatch, norm: NormMode, adaptation: InnerSteps
) -> Callable[[], Tensor]:
    """Adapts to the support sets of tasks; calling the result applies them to their query sets.

    Returns:
        A function that returns the outputs on the query sets, logits ``[T, N*Q, N]``.
    """
    keys = torch.zeros(batch.tasks, dtype=torch.int64, device=batch.device)  # Any: dropout is off.
    bound = problem.bind(batch, norm, keys)
    inner = adapt(
        bound.bilevel.inner_loss, bound.bilevel.inner_init, adaptation, outer=bound.bilevel.outer
    )
    return partial(bound.query_outputs, inner)


@torch.no_grad()
def embed(
    network: nn.Module,
    examples: Inputs,
    dtype: torch.dtype = torch.float32,
    precision: Precision = "float32",
    *,
    progress: bool = False,
) -> Tensor:
    """Features ``[M, D]`` of examples, in evaluation mode with running statistics.

    Args:
        network: network from inputs ``[B, ...]`` to features ``[B, D]``.
        examples: ``[M, ...]``; images of uint8 are scaled to [0, 1].
        dtype: dtype of the network's inputs and of the features.
        precision: precision of the network's matrix products and convolutions.
        progress: show a progress bar, or lines where there is no terminal.
    """
    count = len(one_of(examples))
    device = next((p.device for p in network.parameters()), one_of(examples).device)
    was_training = network.training
    network.eval()

    def features(rows: slice) -> Tensor:
        part = each(lambda x: as_inputs(x[rows], device, dtype), examples)
        return only_tensor(call_alone(network, part)).to(dtype)

    def counted(rows: slice) -> Tensor:
        found = features(rows)
        bar.advance(len(found))
        return found

    bar = Progress("embedding", count, "example", shown=progress)
    try:
        with (
            bar,
            product_precision(precision, device),
            forward_precision(precision, device),
            kernel_forward(ForwardContext(rows=NO_ROWS), []),
        ):
            size = min(_IMAGES, at_a_time(lambda: features(slice(1)), count, device))
            parts = Chunk(size, setting="", what="example").run(counted, count, device)
        return torch.cat(parts)
    finally:
        network.train(was_training)
