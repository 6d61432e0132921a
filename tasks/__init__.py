"""Data for few-shot learning: class data sets and the tasks drawn from them."""

from __future__ import annotations

from tasks.augmentation import Augmentation
from tasks.batch import TaskBatch
from tasks.dataset import ClassDataset, Splits
from tasks.errors import DataError
from tasks.sampler import EpisodicSampler, TaskSource

__all__ = [
    "Augmentation",
    "ClassDataset",
    "DataError",
    "EpisodicSampler",
    "Splits",
    "TaskBatch",
    "TaskSource",
]
