"""The value of a loss or metric on the support and query sets of a batch of tasks."""

from __future__ import annotations

from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.objectives.cross_entropy import mask_classes
from fewshot_blo.objectives.metric import Metric, one_a_task
from fewshot_blo.tasks import TaskBatch


def on_support(metric: Metric, outputs: Tensor, batch: TaskBatch) -> Tensor:
    """Of outputs ``[T, B, ...]`` on the support sets, ``[T]``."""
    outputs = _masked(metric, outputs, batch)
    found = metric(outputs, batch.support_y, batch.support_rows)
    return one_a_task(metric.name, found, batch.tasks)


def on_query(metric: Metric, outputs: Tensor, batch: TaskBatch) -> Tensor:
    """Of outputs ``[T, B, ...]`` on the query sets, ``[T]``."""
    outputs = _masked(metric, outputs, batch)
    found = metric(outputs, batch.query_y, batch.query_rows)
    return one_a_task(metric.name, found, batch.tasks)


def _masked(metric: Metric, outputs: Tensor, batch: TaskBatch) -> Tensor:
    if batch.way:
        return mask_classes(outputs, batch.classes)
    if metric.needs_classes:
        remedy = "name a loss or metric for such targets, as MeanSquaredError"
        need_classes(batch, metric.name, remedy)
    return outputs


def need_classes(batch: TaskBatch, what: str, remedy: str) -> None:
    """Raises ``ConfigurationError`` if tasks have no classes, which something needs."""
    if not batch.way:
        if batch.query_y.ndim == 2 and not batch.query_y.is_floating_point():
            remedy = "if its targets are labels, give TaskBatch the classes of each task, [T, N]"
        raise ConfigurationError(
            f"{what} needs tasks with classes, and these have none: {batch!r}; {remedy}"
        )
