"""``Split`` and ``TaskSplits``: what runs know of data of any kind for training and test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch


class Split(Protocol):
    """Data that tasks are drawn from: classes of examples, groups of them, or functions.

    Attributes:
        class_names: names of the classes; empty without classes.
        shape: shape of one example.
        outputs: number of outputs that targets ask for; None if it is the way of the tasks.
    """

    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def shape(self) -> torch.Size: ...
    @property
    def outputs(self) -> int | None: ...
    def describe(self) -> str:
        """Text for tables: what there is to draw from."""
        ...


class TaskSplits(Protocol):
    """Data for training, validation and test, and sentences on what was passed over."""

    @property
    def train(self) -> Any: ...
    @property
    def validation(self) -> Any: ...
    @property
    def test(self) -> Any: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def __iter__(self) -> Iterator[tuple[str, Any]]: ...
