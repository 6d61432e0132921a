"""A run from its settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.data import build_sampler, published_classes, same_images
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.settings import Config, DataSettings
from fewshot_blo.experiments.strategy import build_adaptation, build_strategy
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.tasks import Splits
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.run import LAST
from fewshot_blo.training.train import TrainResult, train


def train_from_config(
    config: Config,
    splits: Splits,
    folder: Path,
    *,
    resume: bool,
    tested: bool,
    progress: bool = True,
) -> TrainResult:
    """Trains what the settings describe, in ``folder``.

    Args:
        config: the settings.
        splits: of their data.
        folder: of the run.
        resume: continue from ``last.pt``.
        tested: the test classes must be able to give tasks, for they will be drawn afterwards:
            training takes hours, so that is an error before it.
        progress: as in ``train``.

    Raises:
        CheckpointError: as ``train``, or if ``problem.start_from`` does not fit.
        ConfigurationError: if settings contradict each other.
        DataError: if the classes cannot give such tasks.
    """
    config = with_classes(config, splits)
    problem = build_start(config, splits.train.images.shape[1:], resume=resume)
    training = build_sampler(config, splits.train, training=True)
    validation = build_sampler(config, splits.validation, training=False)
    if tested:
        build_sampler(config, splits.test, training=False)
    return train(
        problem,
        build_strategy(config),
        training,
        validation,
        folder=folder,
        settings=config.train,
        adaptation=build_adaptation(config),
        config=_known(config, folder / LAST) if resume else asdict(config),
        resume=resume,
        progress=progress,
    )


def with_classes(config: Config, splits: Splits) -> Config:
    """The settings with the number of pretraining's classes, if they leave it to the data."""
    if config.problem.name != "pretraining" or config.problem.classes:
        return config
    return replace(config, problem=replace(config.problem, classes=len(splits.train.class_names)))


def build_start(config: Config, image: torch.Size, *, resume: bool = False) -> FewShotProblem:
    """The problem as training starts with it, after ``problem.start_from``.

    Args:
        config: the settings, with all classes counted.
        image: shape of one image, ``[C, H, W]``.
        resume: a checkpoint will bring the weights, so none are looked for.

    Raises:
        CheckpointError: if ``problem.start_from`` does not fit.
        ConfigurationError: if it is a recipe, was trained on classes that are held out here, or
            as ``build_problem``.
    """
    start = config.problem.start_from
    if start.endswith(".yaml"):
        raise ConfigurationError(
            f"problem.start_from is the recipe {start}: `compare` trains it first; here give a "
            "checkpoint"
        )
    problem = build_problem(config, image, pretrained=not resume)
    if start and not resume:
        checkpoint = checkpoints.load(Path(start))
        _check_unseen(config.data, checkpoint.config.get("data"), start)
        checkpoint.start(problem)
    return problem


def _check_unseen(data: DataSettings, before: object, start: str) -> None:
    """Raises where a start was trained on classes that validation or test will draw."""
    if not isinstance(before, Mapping):  # A caller of train may save anything, or nothing.
        return
    names = {field.name for field in fields(DataSettings)}
    other = DataSettings(**{name: value for name, value in before.items() if name in names})
    held_out = published_classes(data, "val") + published_classes(data, "test")
    seen = not set(held_out).isdisjoint(published_classes(other, "train"))
    # A folder's classes are known by how they are divided.
    same_folder = data.name == "folder" and same_images(data, other)
    if seen or (same_folder and (data.seed, data.csv) != (other.seed, other.csv)):
        raise ConfigurationError(
            f"problem.start_from is {start}, which was trained on classes that are validation or "
            "test classes here, so that accuracies would flatter: start from a run with the same "
            "division of classes"
        )


def _known(config: Config, checkpoint: Path) -> dict[str, Any]:
    """The settings without those that are younger than a checkpoint and have their defaults."""
    settings, defaults = asdict(config), asdict(Config())
    if not checkpoint.is_file():
        return settings
    saved = checkpoints.load(checkpoint).config
    for section, values in settings.items():
        before = saved.get(section)
        if isinstance(values, dict) and isinstance(before, Mapping):
            settings[section] = {
                name: value
                for name, value in values.items()
                if name in before or value != defaults[section][name]
            }
    return settings
