"""``Metric``: one number a task from its outputs and targets; the base class of losses, too."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Union, cast

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.quantity import Quantity

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(outputs [T, B, ...], targets [T, B, ...], rows [T, B]) -> [T]``."""


class Metric(ABC):
    """One number a task. A loss is a differentiable metric, of which lower values are better.

    Attributes:
        higher_is_better: whether models are chosen for high values.
        percent: whether values are fractions, which texts show in percent.
        needs_classes: whether outputs are logits ``[T, B, N]`` and targets labels ``[T, B]``.
    """

    higher_is_better: ClassVar[bool] = False
    percent: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name in tables, logs and figures: by default the class name in words."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(self).__name__).lower()

    @property
    def quantity(self) -> Quantity:
        """Name, direction and unit, for logs, tables and figures."""
        return Quantity(self.name, self.higher_is_better, self.percent)

    @property
    def usual_metric(self) -> Metric:
        """What is measured where this is the loss and no metric is named: the loss itself."""
        return self

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """The value of each task, ``[T]``.

        Args:
            outputs: ``[T, B, ...]``; logits of padded classes are -inf.
            targets: ``[T, B, ...]``.
            rows: ``[T, B]``, bool, False where padded.
        """


@checked
@dataclass(frozen=True)
class FunctionMetric(Metric):
    """A function of your own as a metric or loss.

    Attributes:
        function: ``(outputs, targets, rows) -> [T]``.
        label: name in tables.
    """

    function: LossFunction
    label: str = ""

    @property
    def name(self) -> str:
        """Its label, or the function's name in words."""
        return self.label or str(getattr(self.function, "__name__", "loss")).replace("_", " ")

    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """The function's value.

        Raises:
            ConfigurationError: if it does not return one number a task.
        """
        return one_a_task(self.name, self.function(outputs, targets, rows), len(rows))


AnyLoss = Union[Metric, LossFunction]  # noqa: UP007
"""A loss, or a function that is one."""


def as_metric(loss: AnyLoss) -> Metric:
    """A loss as a metric: a plain function is wrapped.

    Raises:
        ConfigurationError: if it is a class, or a loss of ``torch.nn``, which knows no tasks.
    """
    if isinstance(loss, type):
        raise ConfigurationError(f"loss is the class {loss.__name__}: give {loss.__name__}()")
    if isinstance(loss, _Loss):
        raise ConfigurationError(
            f"loss is torch.nn.{type(loss).__name__}, which takes outputs and targets and mixes "
            "tasks: use one of fewshot_blo.objectives, as MeanSquaredError(), or a function "
            "(outputs, targets, rows) -> [T]"
        )
    if hasattr(loss, "higher_is_better"):
        return cast(Metric, loss)
    return FunctionMetric(loss)


def one_a_task(name: str, found: object, tasks: int) -> Tensor:
    """What a metric, which may be one of the user's own, returned for so many tasks.

    Raises:
        ConfigurationError: if it is not one number a task.
    """
    if not isinstance(found, Tensor) or found.shape != (tasks,):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigurationError(
            f"{name} returns {shape} for {tasks} tasks: it must return one number a task, [{tasks}]"
        )
    return found


def mean_of_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Mean of each task's values over its real rows and all further dimensions, ``[T]``.

    Args:
        values: ``[T, B, ...]``.
        rows: ``[T, B]``, bool.
    """
    values = values if values.ndim == 2 else values.flatten(2).mean(2)
    # Not a product: outputs of padded rows may be infinite.
    return torch.where(rows, values, 0).sum(1) / rows.sum(1)


def check_shapes(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Checks that outputs and targets have one shape; PyTorch would broadcast others silently.

    Raises:
        ConfigurationError: if they do not.
    """
    if outputs.shape != targets.shape:
        remedy = (
            f"give the network {list(targets.shape[2:])} outputs a row"
            if targets.ndim > 2
            else "give targets a last dimension, or name a loss of classes if they are labels"
        )
        raise ConfigurationError(
            f"outputs have shape {list(outputs.shape)} and targets {list(targets.shape)}: "
            f"{name} needs the same shape; {remedy}"
        )
