"""``evaluate``: few-shot accuracy of a problem on held-out tasks; ``embed``: features of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fewshot_blo.errors import SINGULAR, ConfigurationError, DivergenceError
from fewshot_blo.evaluation.counts import Counts, Tally
from fewshot_blo.evaluation.parts import part_of
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.kernel import SGD, InnerSteps, adapt
from fewshot_blo.kernel.interception import kernel_forward
from fewshot_blo.kernel.layers import NO_ROWS, ForwardContext
from fewshot_blo.kernel.precision import Precision, forward_precision, product_precision
from fewshot_blo.kernel.statistics import has_statistics, uses_batch_statistics
from fewshot_blo.machine.chunk import Chunk, at_a_time
from fewshot_blo.networks.views import Views
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.records.checked import checked
from fewshot_blo.records.progress import Progress
from fewshot_blo.records.ranges import Counting, Natural
from fewshot_blo.records.shard import Shard
from fewshot_blo.tasks import EpisodicSampler, TaskBatch
from fewshot_blo.tasks.dataset import intensities

_IMAGES = 256


ADAPTATION = InnerSteps(10, SGD(0.5))
"""Default adaptation to a task at test time: inner steps on the loss of its support set."""


@checked
def evaluate(
    problem: FewShotProblem,
    sampler: EpisodicSampler,
    *,
    tasks: Counting = 600,
    norm: NormMode = "transductive",
    adaptation: InnerSteps = ADAPTATION,
    chunk: Natural = 0,
    embeddings: Tensor | None = None,
    views: Views = "one",
    shard: Shard | None = None,
    progress: bool = False,
) -> Evaluation:
    """Adapts to the support set of each task and classifies its query set.

    The tasks are the sampler's first ``tasks`` tasks, so models evaluated with samplers of the
    same seed see the same tasks. If no feature depends on other images (running statistics, or no
    batch statistics), a shared encoder embeds the data set once and tasks use the embeddings.

    Args:
        problem: trained problem.
        sampler: sampler of the test tasks; its batch size does not matter.
        tasks: number of tasks.
        norm: source of the batch norm statistics on the query set.
        adaptation: inner steps that adapt to a task.
        chunk: number of tasks adapted at a time; 0 measures how many fit into memory. Results do
            not depend on it, up to rounding.
        embeddings: features ``[M, D]`` of all images of the sampler's data set, from ``embed``; by
            default they are computed where possible.
        views: views of an image, over which a shared encoder's features are averaged.
        shard: the part of the tasks that is evaluated, for ``merge`` with the other parts; None
            for all.
        progress: show a progress bar, or lines where there is no terminal.

    Raises:
        ConfigurationError: if ``tasks`` is not positive, ``chunk`` is negative, running statistics
            have not been estimated, views or embeddings are given for a problem without features
            or are combined, a single task does not fit into memory, or the shard has no task.
        DivergenceError: if the logits of a task are not finite after the inner steps.
    """
    if norm == "running" and not has_statistics(problem.network):
        raise ConfigurationError(
            "norm is running, but running statistics have not been estimated (train estimates "
            "them from an EpisodicSampler): call update_statistics, or use another norm mode"
        )
    if views != "one":
        if embeddings is not None:
            raise ConfigurationError(
                f"views is {views}, but embeddings are given, whose views are fixed: leave them "
                "out, or embed with problem.with_views(views).embedder and set views to one"
            )
        problem = problem.with_views(views)
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
        with torch.no_grad(), product_precision(problem.precision, sampler.device):
            if embeddings is None:
                embeddings = _embeddings(problem, sampler, norm, progress)
            accuracy, counts = _scores(
                problem, sampler, numbers, norm, adaptation, chunk, embeddings, progress
            )
    finally:
        network.train(was_training)
    names = [sampler.dataset.class_names[c] for c in counts.classes.tolist()]
    episodes = f"{sampler.describe()}, seed {sampler.seed}"
    part = None if shard is None else part_of(shard, tasks, problem, sampler, adaptation)
    return Evaluation(
        norm,
        episodes,
        adaptation.most,
        accuracy,
        names,
        counts,
        problem.precision,
        views,
        part,
    )


def _scores(
    problem: FewShotProblem,
    sampler: EpisodicSampler,
    numbers: range,
    norm: NormMode,
    adaptation: InnerSteps,
    chunk: int,
    embeddings: Tensor | None,
    progress: bool,
) -> tuple[Tensor, Counts]:
    """Accuracy of each task ``[tasks]``, on the CPU, and counts over all queries."""
    start, tasks = numbers.start, len(numbers)
    if embeddings is not None:
        problem = problem.on_features()
    first = sampler.between(start, start + min(tasks, 4), embeddings)
    problem.prepare(first, derivatives="first")
    tally = Tally(len(sampler.dataset.class_names), sampler.device)
    bar = Progress(f"evaluating ({norm})", tasks, "task", shown=progress)

    def score(part: slice) -> tuple[Tensor, Tensor]:
        """Accuracy of tasks, and whether their logits are finite, without a host sync."""
        batch = sampler.between(start + part.start, start + part.stop, embeddings)
        logits = adapted(problem, batch, norm, adaptation)()
        finite, queries = logits.isfinite().all(), (batch.query_y >= 0).sum(1)
        # Counts come last: if memory runs out earlier, these tasks are scored again.
        right = tally.add(logits, batch)
        bar.advance(batch.tasks)
        return right.sum(1).double() / queries, finite

    size = chunk or at_a_time(
        lambda: adapted(problem, first[:1], norm, adaptation)(), tasks, sampler.device
    )
    with bar:
        accuracy, finite = zip(*Chunk(size).run(score, tasks, sampler.device), strict=True)
    if not torch.stack(finite).all():
        raise DivergenceError(
            f"evaluation: logits of a task are not finite after {adaptation.steps} inner steps "
            f"of {adaptation.rule}: lower the step size or the number of steps of the adaptation"
            f"{SINGULAR}"
        )
    return torch.cat(accuracy).cpu(), tally.counts()


def _embeddings(
    problem: FewShotProblem, sampler: EpisodicSampler, norm: NormMode, progress: bool
) -> Tensor | None:
    """Features of all images ``[M, D]``; None if they may depend on other images."""
    alone = norm == "running" or not uses_batch_statistics(problem.network)
    embedder = problem.embedder
    if not alone or embedder is None:
        return None
    images = sampler.dataset.images
    return embed(embedder, images, sampler.dtype, problem.precision, progress=progress)


def adapted(
    problem: FewShotProblem, batch: TaskBatch, norm: NormMode, adaptation: InnerSteps
) -> Callable[[], Tensor]:
    """Adapts to the support sets of tasks; calling the result classifies their query sets.

    Returns:
        A function that returns the logits ``[T, N*Q, N]`` of the query sets.
    """
    keys = torch.zeros_like(batch.classes[:, 0])  # Any keys: dropout is off.
    bound = problem.bind(batch, norm, keys)
    inner = adapt(
        bound.bilevel.inner_loss, bound.bilevel.inner_init, adaptation, outer=bound.bilevel.outer
    )
    return partial(bound.query_logits, inner)


@torch.no_grad()
def embed(
    network: nn.Module,
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    precision: Precision = "float32",
    *,
    progress: bool = False,
) -> Tensor:
    """Features ``[M, D]`` of images, in evaluation mode with running statistics.

    Args:
        network: network from images ``[B, ...]`` to features ``[B, D]``.
        images: ``[M, ...]``, uint8, which is scaled to [0, 1], or floating-point, used unchanged.
        dtype: dtype of the network's inputs and of the features.
        precision: precision of the network's matrix products and convolutions.
        progress: show a progress bar, or lines where there is no terminal.
    """
    device = next((p.device for p in network.parameters()), images.device)
    was_training = network.training
    network.eval()

    def features(rows: slice) -> Tensor:
        part = images[rows]
        whole = part.dtype == torch.uint8
        x = intensities(part, device, dtype) if whole else part.to(device, dtype)
        found: Tensor = network(x).to(dtype)
        return found

    def counted(rows: slice) -> Tensor:
        found = features(rows)
        bar.advance(len(found))
        return found

    bar = Progress("embedding", len(images), "image", shown=progress)
    try:
        with (
            bar,
            product_precision(precision, device),
            forward_precision(precision, device),
            kernel_forward(ForwardContext(rows=NO_ROWS), []),
        ):
            size = min(_IMAGES, at_a_time(lambda: features(slice(1)), len(images), device))
            parts = Chunk(size, setting="", what="image").run(counted, len(images), device)
        return torch.cat(parts)
    finally:
        network.train(was_training)
