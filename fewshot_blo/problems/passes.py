"""Forward passes in which a network meets its training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from fewshot_blo.tasks import EpisodicSampler, TaskBatch
from fewshot_blo.tasks.dataset import intensities

ForwardPass = Callable[[], object]
"""Runs a network forward once."""

Adapted = Callable[[TaskBatch], ForwardPass]
"""Adapts to the support sets of tasks; calling the result classifies their query sets."""

_IMAGES, _TASKS, _BATCH = 1024, 64, 128


def image_passes(
    network: nn.Module, tasks: EpisodicSampler, device: torch.device
) -> Iterator[ForwardPass]:
    """Passes over 1024 images that are spread over the classes of a data set, 128 at a time.

    Args:
        network: takes the images.
        tasks: of the data set.
        device: of the network.
    """
    dataset = tasks.dataset
    count = min(_IMAGES, len(dataset))
    rows = torch.linspace(0, len(dataset) - 1, count).long()
    # Consecutive images are of one class: shuffle, so that each batch holds many classes.
    rows = rows[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    images = intensities(dataset.images[rows.to(dataset.images.device)], device, tasks.dtype)
    return (partial(network, part) for part in torch.split(images, _BATCH))


def query_passes(tasks: EpisodicSampler, adapted: Adapted) -> Iterator[ForwardPass]:
    """Passes over the query sets of tasks, until they hold 1024 images or 64 tasks have passed.

    Args:
        tasks: are adapted to one by one.
        adapted: adapts to a task.
    """
    images = 0
    for index in range(_TASKS):
        if images >= _IMAGES:
            return
        batch = tasks.between(index, index + 1)
        yield adapted(batch)
        images += batch.query_y.shape[1]
