"""Few-shot accuracy under a stated protocol, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fewshot_blo.errors import ConfigurationError, DivergenceError
from fewshot_blo.kernel import SGD, UpdateRule, adapt
from fewshot_blo.kernel.layers import has_statistics, uses_batch_statistics
from fewshot_blo.kernel.memory import largest_chunk, peak_bytes
from fewshot_blo.problems import FewShotProblem, NormMode, SharedEncoder
from fewshot_blo.problems.few_shot import mask_classes
from tasks import ClassDataset, EpisodicSampler, TaskBatch
from tasks.dataset import intensities


@dataclass(frozen=True)
class Adaptation:
    """How a task is solved at test time: steps of a rule on the inner loss of its support set."""

    steps: int = 10
    rule: UpdateRule = SGD(0.5)


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on a number of tasks, and the protocol it was measured under.

    Attributes:
        norm: norm mode.
        episodes: way, shot, queries a class and seed, as words for a table.
        steps: inner steps.
        accuracy: of each task, ``[tasks]``, float64 in [0, 1].
        class_names: the classes that were drawn.
        class_accuracy: accuracy over all queries of each of them.
    """

    norm: NormMode
    episodes: str
    steps: int
    accuracy: Tensor
    class_names: Sequence[str] = field(repr=False)
    class_accuracy: Tensor = field(repr=False)

    @property
    def protocol(self) -> str:
        """Episodes and inner steps, as words for a table."""
        return f"{self.episodes}, {self.steps} inner steps"

    @property
    def mean(self) -> float:
        """Mean accuracy over tasks."""
        return float(self.accuracy.mean())

    @property
    def interval(self) -> float:
        """Half width of the 95 % interval of the mean, ``1.96 s / sqrt(tasks)``."""
        return half_width(self.accuracy)

    def __str__(self) -> str:
        return (
            f"{100 * self.mean:.2f} ± {100 * self.interval:.2f} % "
            f"({self.norm}, {len(self.accuracy)} tasks, {self.protocol})"
        )


def half_width(values: Tensor) -> float:
    """Half width of the 95 % interval of a mean, ``1.96 s / sqrt(n)``; NaN for one value."""
    if len(values) < 2:
        return math.nan
    return 1.96 * float(values.double().std()) / math.sqrt(len(values))


def paired_difference(a: Evaluation, b: Evaluation) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of ``b - a``, task by task.

    Raises:
        ConfigurationError: if the two were not measured on the same tasks.
    """
    if len(a.accuracy) != len(b.accuracy) or a.episodes != b.episodes:
        raise ConfigurationError(
            f"a paired interval needs the same tasks; they are {len(a.accuracy)} of "
            f"{a.episodes} and {len(b.accuracy)} of {b.episodes}"
        )
    if a.class_names != b.class_names:
        raise ConfigurationError(
            "a paired interval needs the same tasks; they are of different classes: evaluate both "
            "on one split of one data set"
        )
    difference = b.accuracy.double() - a.accuracy.double()
    return float(difference.mean()), half_width(difference)


def evaluate(
    problem: FewShotProblem,
    sampler: EpisodicSampler,
    *,
    tasks: int = 600,
    norm: NormMode = "transductive",
    adaptation: Adaptation | None = None,
    progress: bool = False,
) -> Evaluation:
    """Adapts to each task's support set and classifies its query set.

    The tasks are the sampler's first ``tasks`` ones, so two models evaluated with samplers of one
    seed see the same tasks. With running statistics, or a network that treats every image by
    itself, a shared encoder embeds the split once and the tasks are drawn from the embeddings.

    Args:
        problem: the trained problem.
        sampler: draws the test tasks; at most a batch of them is adapted at a time.
        tasks: number of tasks.
        norm: where batch norms take their statistics from.
        adaptation: steps and rule on the inner loss; by default ``Adaptation()``.
        progress: show a progress bar on a terminal.

    Raises:
        ConfigurationError: if the number of tasks is not positive, or the norm mode does not fit.
        DivergenceError: if the inner steps of a task end in logits that are not finite.
    """
    if tasks < 1:
        raise ConfigurationError(f"evaluation over {tasks} tasks: use at least 1")
    if norm == "running" and not isinstance(problem, SharedEncoder):
        raise ConfigurationError(
            "running statistics belong to a shared encoder; here each task adapts its own network: "
            "use norm 'support' or 'transductive'"
        )
    if norm == "running" and not has_statistics(problem.network):
        raise ConfigurationError(
            "the running statistics have not been estimated (train does so, from the images of an "
            "EpisodicSampler): call update_statistics, or use another norm mode"
        )
    adaptation = adaptation or Adaptation()
    accuracies = []
    classes = len(sampler.dataset.class_names)
    right, seen = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    network = problem.network
    was_training = network.training
    network.eval()
    try:
        problem, batches = _batches(problem, sampler, norm, tasks, adaptation)
        for batch in tqdm(
            batches,
            disable=None if progress else True,  # None: only where there is no terminal.
            desc=f"evaluating ({norm})",
            unit="chunk",
        ):
            correct = _correct(problem, batch, norm, adaptation)
            real = batch.query_y >= 0
            accuracies.append((correct & real).sum(1).cpu().double() / real.sum(1).cpu())
            drawn = batch.classes.gather(1, batch.query_y.clamp(min=0))[real].cpu()
            seen += torch.bincount(drawn, minlength=classes)
            right += torch.bincount(drawn[correct[real].cpu()], minlength=classes)
    finally:
        network.train(was_training)
    drawn_classes = seen.nonzero().flatten()
    names = [sampler.dataset.class_names[c] for c in drawn_classes.tolist()]
    per_class = right[drawn_classes] / seen[drawn_classes]
    episodes = f"{sampler.describe()}, seed {sampler.seed}"
    return Evaluation(norm, episodes, adaptation.steps, torch.cat(accuracies), names, per_class)


@torch.no_grad()
def _correct(
    problem: FewShotProblem, batch: TaskBatch, norm: NormMode, adaptation: Adaptation
) -> Tensor:
    """Which queries are classified correctly, ``[T, N*Q]``."""
    bound = problem.bind(batch, norm)
    inner = adapt(
        bound.bilevel.inner_loss,
        bound.bilevel.inner_init,
        steps=adaptation.steps,
        rule=adaptation.rule,
        outer=bound.bilevel.outer,
    )
    logits = bound.query_logits(inner)
    if not logits.isfinite().all():
        raise DivergenceError(
            f"evaluation: the logits of a task are not finite after {adaptation.steps} inner steps "
            f"of {adaptation.rule}: lower the step size or the number of steps of the adaptation"
        )
    return mask_classes(logits, batch.classes).argmax(-1) == batch.query_y


def _batches(
    problem: FewShotProblem,
    sampler: EpisodicSampler,
    norm: NormMode,
    tasks: int,
    adaptation: Adaptation,
) -> tuple[FewShotProblem, Iterator[TaskBatch]]:
    """The problem and its batches: of images, or of embeddings where that is the same."""
    embeddings: Tensor | None = None
    each_image_alone = norm == "running" or not uses_batch_statistics(problem.network)
    if isinstance(problem, SharedEncoder) and each_image_alone:
        embeddings = embed(problem.network, sampler.dataset, sampler.dtype)
        problem = problem.on_features()
    first = sampler.batch(0, embeddings)
    problem.prepare(first)
    chunk = _chunk(problem, first, norm, adaptation)
    return problem, _generate(sampler, tasks, embeddings, chunk)


def _generate(
    sampler: EpisodicSampler, tasks: int, embeddings: Tensor | None, chunk: int
) -> Iterator[TaskBatch]:
    for index in range(-(-tasks // sampler.tasks)):
        yield from sampler.batch(index, embeddings)[: tasks - index * sampler.tasks].chunks(chunk)


def _chunk(
    problem: FewShotProblem, batch: TaskBatch, norm: NormMode, adaptation: Adaptation
) -> int:
    """Tasks at a time: a whole batch on a GPU, on the host what fits into a quarter GiB."""
    if batch.support_x.device.type == "cuda":
        return batch.tasks
    peak = peak_bytes(lambda: _correct(problem, batch[:1], norm, adaptation))
    return largest_chunk(peak, batch.tasks, 2**28)


@torch.no_grad()
def embed(network: nn.Module, dataset: ClassDataset, dtype: torch.dtype = torch.float32) -> Tensor:
    """Features ``[M, D]`` of every image, batch norms using their running statistics."""
    device = next((p.device for p in network.parameters()), dataset.images.device)
    was_training = network.training
    network.eval()
    try:
        return torch.cat(
            [network(intensities(part, device, dtype)) for part in torch.split(dataset.images, 256)]
        )
    finally:
        network.train(was_training)
