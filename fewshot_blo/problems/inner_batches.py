"""Mini-batches of the support sets, one for each inner step."""

from __future__ import annotations

from collections.abc import Callable

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.adapt import inner_step
from fewshot_blo.tasks import TaskBatch


def inner_batches(batch: TaskBatch, examples: int) -> Callable[[], TaskBatch]:
    """A function that gives the tasks with the support examples of the present inner step.

    A part has every P-th row of the support set, so that class-major sets have classes alike in
    all parts. After the last inner step it is the whole support set.

    Args:
        batch: the tasks.
        examples: support examples of a task in a part, at most; 0 for all.

    Raises:
        ConfigurationError: if support sets of several sizes are to be divided.
    """
    rows = batch.support_y.shape[1]
    if not examples or examples >= rows:
        return lambda: batch
    if batch.padded:
        raise ConfigurationError(
            f"inner_batch is {examples}, and the tasks differ in their numbers of examples: set "
            "inner_batch to 0, or draw tasks of one size"
        )
    count = -(-rows // examples)
    parts = [_with_rows(batch, slice(first, None, count)) for first in range(count)]

    def now() -> TaskBatch:
        step = inner_step()
        return batch if step is None else parts[step % count]

    return now


def _with_rows(batch: TaskBatch, rows: slice) -> TaskBatch:
    flat = {
        name: tensor[:, rows] if name.startswith("support_") else tensor
        for name, tensor in batch.flat.items()
    }
    return TaskBatch.from_flat(flat).known(padded=False)
