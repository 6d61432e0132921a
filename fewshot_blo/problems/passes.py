"""Forward passes on training images, from which running statistics and centres are estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from fewshot_blo.tasks import EpisodicSampler, TaskBatch
from fewshot_blo.tasks.dataset import intensities

ForwardPass = Callable[[], object]
"""Runs one forward pass of a network."""

Adapted = Callable[[TaskBatch], ForwardPass]
"""Adapts to the support sets of tasks; calling the result classifies their query sets."""

_IMAGES, _TASKS, _BATCH = 1024, 64, 128


def image_passes(
    network: nn.Module, tasks: EpisodicSampler, device: torch.device
) -> Iterator[ForwardPass]:
    """Passes on at most 1024 images, spread evenly over the classes of a data set, 128 at a time.

    Args:
        network: network that takes the images.
        tasks: sampler of the data set.
        device: device of the network.
    """
    dataset = tasks.dataset
    count = min(_IMAGES, len(dataset))
    rows = torch.linspace(0, len(dataset) - 1, count).long()
    # Images are sorted by class: shuffle, so that each batch has many classes.
    rows = rows[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    images = intensities(dataset.images[rows.to(dataset.images.device)], device, tasks.dtype)
    return (partial(network, part) for part in torch.split(images, _BATCH))


def query_passes(tasks: EpisodicSampler, adapted: Adapted) -> Iterator[ForwardPass]:
    """Passes on the query sets of adapted tasks, until 1024 images or 64 tasks are reached.

    Args:
        tasks: sampler of the tasks, which are adapted one at a time.
        adapted: adapts to a task.
    """
    images = 0
    for index in range(_TASKS):
        if images >= _IMAGES:
            return
        batch = tasks.between(index, index + 1)
        yield adapted(batch)
        images += batch.query_y.shape[1]
