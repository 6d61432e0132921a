"""What a trained network keeps of its training images for inductive tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from fewshot_blo.evaluation.evaluate import ADAPTATION, adapted
from fewshot_blo.kernel import InnerSteps, estimate_statistics
from fewshot_blo.kernel.statistics import uses_batch_statistics
from fewshot_blo.networks.centre import estimate_centres, has_centres
from fewshot_blo.problems import FewShotProblem, Initialization
from fewshot_blo.tasks import EpisodicSampler
from fewshot_blo.tasks.dataset import intensities

_IMAGES, _TASKS = 1024, 64


def update_statistics(
    problem: FewShotProblem, tasks: EpisodicSampler, adaptation: InnerSteps = ADAPTATION
) -> None:
    """Estimates running statistics and centres from training images without augmentation.

    Those of a shared encoder are of images spread over all classes. An initialization meets its
    query images with adapted parameters, so its are of the query sets of adapted tasks.

    Args:
        problem: changed in place.
        tasks: training tasks.
        adaptation: how they are solved.
    """
    network = problem.network
    statistics, centres = uses_batch_statistics(network), has_centres(network)
    if not (statistics or centres):
        return
    was_training = network.training
    network.eval()  # The features that the statistics are for have no dropout.
    try:
        if isinstance(problem, Initialization):
            passes = _query_passes(problem, tasks.plain(), adaptation)
            estimate_statistics(network, passes)
            return
        batches = torch.split(_images(problem, tasks), 128)
        if statistics:
            estimate_statistics(network, (partial(network, images) for images in batches))
        if centres:
            estimate_centres(network, batches)
    finally:
        network.train(was_training)


def _images(problem: FewShotProblem, tasks: EpisodicSampler) -> Tensor:
    """Images ``[B, ...]`` spread over the classes of a data set."""
    dataset = tasks.dataset
    count = min(_IMAGES, len(dataset))
    rows = torch.linspace(0, len(dataset) - 1, count).long()
    # Consecutive images are of one class: shuffle, so that each batch holds many classes.
    rows = rows[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    device = next(iter(problem.outer.values())).device
    return intensities(dataset.images[rows.to(dataset.images.device)], device, tasks.dtype)


def _query_passes(
    problem: Initialization, tasks: EpisodicSampler, adaptation: InnerSteps
) -> Iterator[Callable[[], object]]:
    """Adapts tasks one by one, for the forward pass of each one's query set."""
    backend, problem.backend = problem.backend, "loop"
    index = images = 0
    try:
        while images < _IMAGES and index < _TASKS:
            batch = tasks.between(index, index + 1)
            yield adapted(problem, batch, "transductive", adaptation)
            index, images = index + 1, images + batch.query_y.shape[1]
    finally:
        problem.backend = backend
