"""Forward passes on training images, from which running statistics and centres are estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from fewshot_blo.kernel.purity import call_alone
from fewshot_blo.tasks import TaskBatch, TaskSource
from fewshot_blo.tasks.inputs import Inputs, as_inputs, each, joined, one_of

ForwardPass = Callable[[], object]
"""Runs one forward pass of a network."""

Adapted = Callable[[TaskBatch], ForwardPass]
"""Adapts to the support sets of tasks; calling the result classifies their query sets."""

_IMAGES, _TASKS, _BATCH = 1024, 64, 128


def example_passes(
    network: nn.Module, tasks: TaskSource, device: torch.device
) -> Iterator[ForwardPass]:
    """Passes on at most 1024 examples, 128 at a time.

    They are spread evenly over the classes of a data set, or are those of the first tasks of a
    source that draws from none.

    Args:
        network: network that takes the examples.
        tasks: source of the tasks.
        device: device of the network.
    """
    pool = tasks.pool
    if pool is None:  # Its tasks have inputs as networks get them.
        found = each(lambda x: x.to(device), _of_tasks(tasks))
    else:
        found = each(lambda x: as_inputs(x, device, tasks.dtype), _spread(pool))
    starts = range(0, len(one_of(found)), _BATCH)
    parts = (each(lambda x, start=start: x[start : start + _BATCH], found) for start in starts)
    return (partial(call_alone, network, part) for part in parts)


def _spread(pool: Inputs) -> Inputs:
    """Examples spread evenly over a set that is sorted by class, in random order."""
    size = len(one_of(pool))
    count = min(_IMAGES, size)
    rows = torch.linspace(0, size - 1, count).long()
    # Sorted by class: shuffled, so that each batch has many classes.
    rows = rows[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    return each(lambda x: x[rows.to(x.device)], pool)


def _of_tasks(tasks: TaskSource) -> Inputs:
    """The real support and query examples of the first tasks."""
    found: list[Inputs] = []
    for index in range(_TASKS):
        if sum(len(one_of(part)) for part in found) >= _IMAGES:
            break
        task = tasks.between(index, index + 1)
        sets = ((task.support_x, task.support_rows), (task.query_x, task.query_rows))
        found += [each(lambda x, rows=rows: x[rows], inputs) for inputs, rows in sets]
    return each(lambda x: x[:_IMAGES], joined(*found))


def query_passes(tasks: TaskSource, adapted: Adapted) -> Iterator[ForwardPass]:
    """Passes on the query sets of adapted tasks, until 1024 images or 64 tasks are reached.

    Args:
        tasks: source of the tasks, which are adapted one at a time.
        adapted: adapts to a task.
    """
    images = 0
    for index in range(_TASKS):
        if images >= _IMAGES:
            return
        batch = tasks.between(index, index + 1)
        yield adapted(batch)
        images += batch.query_y.shape[1]
