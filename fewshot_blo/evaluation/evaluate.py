"""Few-shot accuracy under a stated protocol, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fewshot_blo.errors import SINGULAR, ConfigurationError, DivergenceError
from fewshot_blo.evaluation.result import Evaluation, Tally
from fewshot_blo.kernel import SGD, InnerSteps, adapt
from fewshot_blo.kernel.interception import kernel_forward
from fewshot_blo.kernel.layers import NO_ROWS, ForwardContext
from fewshot_blo.kernel.precision import Precision, forward_precision, product_precision
from fewshot_blo.kernel.statistics import has_statistics, uses_batch_statistics
from fewshot_blo.machine.chunk import Chunk, at_a_time
from fewshot_blo.networks.views import Views
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.records.progress import Progress
from fewshot_blo.tasks import EpisodicSampler, TaskBatch
from fewshot_blo.tasks.dataset import intensities

_IMAGES = 256


ADAPTATION = InnerSteps(10, SGD(0.5))
"""How a task is solved at test time unless it is said: on the inner loss of its support set."""


def evaluate(
    problem: FewShotProblem,
    sampler: EpisodicSampler,
    *,
    tasks: int = 600,
    norm: NormMode = "transductive",
    adaptation: InnerSteps = ADAPTATION,
    chunk: int = 0,
    embeddings: Tensor | None = None,
    views: Views = "one",
    progress: bool = False,
) -> Evaluation:
    """Adapts to each task's support set and classifies its query set.

    The tasks are the sampler's first ``tasks`` ones, so two models evaluated with samplers of one
    seed see the same tasks. With running statistics, or a network that treats every image by
    itself, a shared encoder embeds the split once and the tasks are drawn from the embeddings.

    Args:
        problem: the trained problem.
        sampler: draws the test tasks; the size of its batches plays no part.
        tasks: number of tasks.
        norm: where batch norms take their statistics from.
        adaptation: steps and rule on the inner loss; by default ``ADAPTATION``.
        chunk: tasks adapted at a time; 0 measures how many fit into memory. No result depends on
            it, up to rounding.
        embeddings: of all images of the sampler's data set, as ``embed`` gives them, where they are
            known; otherwise they are made, where images do not meet.
        views: of an image, over which a shared encoder's features are averaged.
        progress: show a progress bar, or lines where there is no terminal.

    Raises:
        ConfigurationError: if the number of tasks is not positive, ``chunk`` is negative, the norm
            mode does not fit, several views or embeddings are given for a problem that has no
            features, views for embeddings, or a single task does not fit into memory.
        DivergenceError: if the inner steps of a task end in logits that are not finite.
    """
    if tasks < 1:
        raise ConfigurationError(f"evaluation over {tasks} tasks: use at least 1")
    if chunk < 0:
        raise ConfigurationError(f"chunk is {chunk}: use 0 for as many tasks as fit, or more")
    if norm == "running" and not has_statistics(problem.network):
        raise ConfigurationError(
            "the running statistics have not been estimated (train does so, from the images of an "
            "EpisodicSampler): call update_statistics, or use another norm mode"
        )
    if views != "one":
        if embeddings is not None:
            raise ConfigurationError(
                f"views is {views}, and embeddings are given, of other views: leave them out, or "
                "embed with the embedder of problem.with_views(views), and views at one"
            )
        problem = problem.with_views(views)
    network = problem.network
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), product_precision(problem.precision, sampler.device):
            if embeddings is None:
                embeddings = _embeddings(problem, sampler, norm, progress)
            scores = _scores(problem, sampler, tasks, norm, adaptation, chunk, embeddings, progress)
    finally:
        network.train(was_training)
    accuracy, tally = scores
    confusion = tally.confusion
    drawn = confusion.sum(1).nonzero().flatten()
    names = [sampler.dataset.class_names[c] for c in drawn.tolist()]
    episodes = f"{sampler.describe()}, seed {sampler.seed}"
    return Evaluation(
        norm,
        episodes,
        adaptation.most,
        accuracy,
        names,
        confusion[drawn][:, drawn],
        tally.calibration_error(),
        problem.precision,
        views,
    )


def _scores(
    problem: FewShotProblem,
    sampler: EpisodicSampler,
    tasks: int,
    norm: NormMode,
    adaptation: InnerSteps,
    chunk: int,
    embeddings: Tensor | None,
    progress: bool,
) -> tuple[Tensor, Tally]:
    """Accuracy of each task, on the host, and counts of all queries."""
    if embeddings is not None:
        problem = problem.on_features()
    first = sampler.between(0, min(tasks, 4), embeddings)
    problem.prepare(first, derivatives="first")
    tally = Tally(len(sampler.dataset.class_names), sampler.device)
    bar = Progress(f"evaluating ({norm})", tasks, "task", shown=progress)

    def score(part: slice) -> tuple[Tensor, Tensor]:
        """Accuracy of tasks, and whether their logits are finite: nothing waits for the device."""
        batch = sampler.between(part.start, part.stop, embeddings)
        logits = adapted(problem, batch, norm, adaptation)()
        finite, queries = logits.isfinite().all(), (batch.query_y >= 0).sum(1)
        # Last, for where memory runs out before, these tasks are scored again.
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
            f"evaluation: the logits of a task are not finite after {adaptation.steps} inner steps "
            f"of {adaptation.rule}: lower the step size or the number of steps of the adaptation"
            f"{SINGULAR}"
        )
    return torch.cat(accuracy).cpu(), tally


def _embeddings(
    problem: FewShotProblem, sampler: EpisodicSampler, norm: NormMode, progress: bool
) -> Tensor | None:
    """Features of all images, where no image's depend on the others."""
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
        A function that gives logits ``[T, N*Q, N]``.
    """
    keys = torch.zeros_like(batch.classes[:, 0])  # Of dropout, which is off.
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
    """Features ``[M, D]`` of images, batch norms using their running statistics.

    Args:
        network: from images ``[B, ...]`` to features.
        images: ``[M, ...]``, uint8, or floating and then taken as they are.
        dtype: of what the network sees, and of the features.
        precision: of the network's products.
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
