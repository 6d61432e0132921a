"""``conformal``: sets of classes that hold the right one with a given probability."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import ADAPTATION, adapted
from fewshot_blo.evaluation.result import half_width
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.objectives.cross_entropy import mask_classes
from fewshot_blo.objectives.tasks import need_classes
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Above, Below, Counting, Natural
from fewshot_blo.tasks import TaskSource


@dataclass(frozen=True)
class ConformalSets:
    """Coverage and size of the prediction sets of the test queries of each task.

    Attributes:
        level: probability that a set should hold the right class.
        calibration: text for tables: what the threshold comes from.
        coverage: share of the task's test queries whose set has the right class, ``[tasks]``.
        size: mean number of classes in a set, ``[tasks]``.
    """

    level: float
    calibration: str
    coverage: Tensor
    size: Tensor

    def __str__(self) -> str:
        coverage, size = (float(x.mean()) for x in (self.coverage, self.size))
        return (
            f"{100 * self.level:g} % sets: coverage {100 * coverage:.2f} ± "
            f"{100 * half_width(self.coverage):.2f} %, {size:.2f} ± {half_width(self.size):.2f} "
            f"classes ({len(self.size)} tasks, {self.calibration})"
        )


@checked
def conformal(
    problem: FewShotProblem,
    source: TaskSource,
    *,
    tasks: Counting = 1000,
    level: Annotated[float, Above(0), Below(1)] = 0.95,
    labelled: Natural = 0,
    calibration: TaskSource | None = None,
    calibration_tasks: Counting = 200,
    norm: NormMode = "transductive",
    adaptation: InnerSteps = ADAPTATION,
    embeddings: Tensor | None = None,
    seed: Natural = 0,
    chunk: Counting = 16,
) -> ConformalSets:
    """Split conformal prediction: classes whose probability is above a calibrated threshold.

    The score of a query is 1 minus the probability of its class, and a set holds the classes whose
    score is at most the threshold. There are two ways to calibrate it:

    - ``labelled`` queries of each task, drawn at random, have known labels; the others are test
      queries. They are exchangeable with each other within the task, so coverage holds in every
      task: on average over the choice it is in [level, level + 1 / (labelled + 1)). It costs these
      labels, which the task did not use for learning. With fewer than ``level / (1 - level)`` of
      them, 19 for 95 %, a set is all classes.
    - With ``labelled`` 0, all queries of other tasks: a new task needs no labels but its support
      set. Its queries are not exchangeable with those of other tasks, but tasks are exchangeable
      if they are draws of one source. Coverage then holds on average over tasks, not in every
      task; each calibration task has weight ``1 / (calibration_tasks + 1)``, which is divided among
      its queries (Lee, Barber and Willett, 2023, arXiv:2306.06342; Dunn, Wasserman and Ramdas,
      2022, arXiv:1809.07441). Tasks of other classes (``calibration``) are exchangeable only if
      both sets of classes are draws of one population: validation and test classes of a published
      split need not be, and coverage is then an observation, not a guarantee.

    Args:
        problem: trained problem of tasks with classes.
        source: test tasks.
        tasks: number of test tasks.
        level: probability that a set should hold the right class.
        labelled: number of labelled queries of each test task that calibrate its threshold.
        calibration: tasks that calibrate; by default those of ``source`` after the test tasks.
        calibration_tasks: number of calibration tasks.
        norm: source of the batch norm statistics on the query set.
        adaptation: inner steps that adapt to a task.
        embeddings: features ``[M, D]`` of the images of ``source``, which the tasks then use.
        seed: seed of the choice of labelled queries.
        chunk: number of tasks at a time.

    Raises:
        ConfigurationError: if tasks have no classes, a task has no test query left, or embeddings
            are combined with ``calibration``, whose images they are not of.
    """
    if embeddings is not None and calibration is not None:
        raise ConfigurationError(
            "embeddings are of the images of the test tasks, but calibration has tasks of its own: "
            "leave the embeddings out"
        )

    def scored(from_: TaskSource, numbers: range) -> Iterator[tuple[Tensor, Tensor]]:
        found = _scored(problem, from_, numbers, norm, adaptation, embeddings, chunk)
        return (part for batch in found for part in batch)

    words = f"{labelled} labelled queries a task"
    shared = math.nan
    if not labelled:
        first = tasks if calibration is None else 0
        numbers = range(first, first + calibration_tasks)
        others = [_of_class(*part) for part in scored(calibration or source, numbers)]
        shared = across_tasks(others, level)
        words = f"{calibration_tasks} calibration tasks"
    coverage, size = [], []
    for number, (scores, labels) in enumerate(scored(source, range(tasks))):
        chosen = np.random.default_rng((seed, number)).permutation(len(labels))
        if labelled >= len(labels):
            raise ConfigurationError(
                f"labelled is {labelled}, and task {number} has {len(labels)} queries: leave some "
                "for test, by more queries a class or a lower labelled"
            )
        test = torch.from_numpy(np.sort(chosen[labelled:]))
        known = torch.from_numpy(chosen[:labelled])
        limit = within_task(_of_class(scores[known], labels[known]), level) if labelled else shared
        coverage.append((_of_class(scores[test], labels[test]) <= limit).double().mean())
        size.append((scores[test] <= limit).double().sum(1).mean())
    return ConformalSets(level, words, torch.stack(coverage), torch.stack(size))


def within_task(scores: Tensor, level: float) -> float:
    """Threshold from ``n`` exchangeable scores ``[n]``: the ``ceil((n + 1) level)``-th smallest.

    Infinite if n is too small. Source: Vovk et al., 2005; Papadopoulos et al., 2002.
    """
    # Rounded first: 20 * 0.95 is 19, not a little more.
    place = math.ceil(round((len(scores) + 1) * level, 9))
    return math.inf if place > len(scores) else float(scores.sort().values[place - 1])


def across_tasks(scores: list[Tensor], level: float) -> float:
    """Threshold from the scores ``[n_k]`` of K exchangeable tasks.

    The ``level`` quantile of the distribution that gives each task the weight ``1 / (K + 1)``, in
    equal parts to its scores, and infinity the rest.
    """
    weights = torch.cat([torch.full((len(own),), 1 / len(own)).double() for own in scores])
    values, order = torch.cat(scores).sort()
    reached = weights[order].cumsum(0) >= round(level * (len(scores) + 1), 9) - 1e-9
    return float(values[reached][0]) if reached.any() else math.inf


def _scored(
    problem: FewShotProblem,
    source: TaskSource,
    numbers: range,
    norm: NormMode,
    adaptation: InnerSteps,
    embeddings: Tensor | None,
    chunk: int,
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Scores ``[Q, N]`` of all classes, NaN where padded, and labels ``[Q]`` of each task."""
    if embeddings is not None:
        problem = problem.on_features()
    network, was_training = problem.network, problem.network.training
    network.eval()
    try:
        for start in range(numbers.start, numbers.stop, chunk):
            batch = source.between(start, min(start + chunk, numbers.stop), embeddings)
            need_classes(batch, "conformal", "prediction sets are sets of classes")
            problem.prepare(batch, derivatives="first")
            with torch.no_grad():
                logits = mask_classes(adapted(problem, batch, norm, adaptation)(), batch.classes)
            # NaN is below no threshold, so that a padded class is in no set.
            scores = (1 - logits.double().softmax(-1)).masked_fill(logits == -math.inf, math.nan)
            labels = batch.query_y
            yield [
                (own[y >= 0].cpu(), y[y >= 0].cpu()) for own, y in zip(scores, labels, strict=True)
            ]
    finally:
        network.train(was_training)


def _of_class(scores: Tensor, labels: Tensor) -> Tensor:
    """Score of each query's class, ``[Q]``."""
    return scores.gather(1, labels[:, None])[:, 0]
