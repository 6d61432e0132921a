"""Estimation of running statistics and centres from training images, for inductive evaluation."""

from __future__ import annotations

from functools import partial

from fewshot_blo.evaluation.evaluate import ADAPTATION, adapted
from fewshot_blo.kernel import InnerSteps, estimate_statistics
from fewshot_blo.kernel.statistics import uses_batch_statistics
from fewshot_blo.networks.centre import estimate_centres, has_centres
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.problems.passes import example_passes
from fewshot_blo.tasks import TaskSource


def update_statistics(
    problem: FewShotProblem, tasks: TaskSource, adaptation: InnerSteps = ADAPTATION
) -> None:
    """Estimates running statistics and centres from training images without augmentation.

    Running statistics come from ``problem.statistics_passes``: images of all classes for a shared
    encoder, query sets of adapted tasks for an initialization. Centres come from images of all
    classes.

    Args:
        problem: problem whose network is updated in place.
        tasks: source of training tasks.
        adaptation: inner steps that adapt to a task.
    """
    network = problem.network
    was_training = network.training
    network.eval()  # Evaluation has no dropout either.
    try:
        if uses_batch_statistics(network):
            solve = partial(adapted, problem, norm="transductive", adaptation=adaptation)
            estimate_statistics(network, problem.statistics_passes(tasks.plain(), solve))
        if has_centres(network):
            device = next(iter(problem.outer.values())).device
            estimate_centres(network, example_passes(network, tasks, device))
    finally:
        network.train(was_training)
