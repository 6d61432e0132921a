"""Data for few-shot learning: class data sets and the tasks drawn from them."""

from __future__ import annotations

from fewshot_blo.tasks.augmentation import Augmentation
from fewshot_blo.tasks.batch import TaskBatch
from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.sampler import EpisodicSampler
from fewshot_blo.tasks.source import TaskSource

__all__ = [
    "Augmentation",
    "ClassDataset",
    "DataError",
    "EpisodicSampler",
    "Splits",
    "TaskBatch",
    "TaskSource",
]
