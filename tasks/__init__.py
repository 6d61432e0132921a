"""Data for few-shot learning: examples by class or by group, and the tasks drawn from them."""

from __future__ import annotations

from fewshot_blo.tasks.augmentation import Augmentation
from fewshot_blo.tasks.batch import TaskBatch
from fewshot_blo.tasks.class_sampler import ClassSampler
from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.group_sampler import GroupSampler
from fewshot_blo.tasks.groups import GroupedDataset, GroupSplits
from fewshot_blo.tasks.mixed import MixedSampler
from fewshot_blo.tasks.sampler import EpisodicSampler
from fewshot_blo.tasks.sequences import padded
from fewshot_blo.tasks.source import TaskSource

__all__ = [
    "Augmentation",
    "ClassDataset",
    "ClassSampler",
    "DataError",
    "EpisodicSampler",
    "GroupSampler",
    "GroupSplits",
    "GroupedDataset",
    "MixedSampler",
    "Splits",
    "TaskBatch",
    "TaskSource",
    "padded",
]
