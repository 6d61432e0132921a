"""From the settings of a run to its data, problem and strategy."""

from __future__ import annotations

from fewshot_blo.from_config.data import (
    build_device,
    build_sampler,
    build_splits,
    image_shape,
    published_classes,
    same_images,
)
from fewshot_blo.from_config.problem import NETWORKS, build_problem
from fewshot_blo.from_config.strategy import build_adaptation, build_rule, build_strategy
from fewshot_blo.from_config.training import build_start, train_from_config, with_classes

__all__ = [
    "NETWORKS",
    "build_adaptation",
    "build_device",
    "build_problem",
    "build_rule",
    "build_sampler",
    "build_splits",
    "build_start",
    "build_strategy",
    "image_shape",
    "published_classes",
    "same_images",
    "train_from_config",
    "with_classes",
]
