"""A run from its settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.data import build_sampler
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.tasks import Splits
from fewshot_blo.tasks.catalogue import DataSet
from fewshot_blo.training import checkpoint as checkpoints
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
        CheckpointError: as ``train``, or if ``start_from`` does not fit.
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
        config.strategy,
        training,
        validation,
        folder=folder,
        settings=config.train,
        adaptation=config.adaptation,
        config=config.plain(),
        resume=resume,
        read_config=_today,
        progress=progress,
    )


def _today(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a run that goes on, in today's form."""
    try:
        return config_from(saved).plain()
    except ConfigurationError as error:
        raise CheckpointError(
            f"the run was begun with settings that this version does not know ({error}): resume "
            "it with the version that began it, or choose another folder"
        ) from error


def with_classes(config: Config, splits: Splits) -> Config:
    """The settings with the number of training classes, for a problem that tells them apart."""
    if config.problem.settings.get("classes") != 0:
        return config
    count = len(splits.train.class_names)
    return replace(config, problem=config.problem.changed(classes=count))


def build_start(config: Config, image: torch.Size, *, resume: bool = False) -> FewShotProblem:
    """The problem as training starts with it, after ``start_from``.

    Args:
        config: the settings, with all classes counted.
        image: shape of one image, ``[C, H, W]``.
        resume: a checkpoint will bring the weights, so none are looked for.

    Raises:
        CheckpointError: if ``start_from`` does not fit.
        ConfigurationError: if it is a recipe, was trained on classes that are held out here, or
            as ``build_problem``.
    """
    start = config.start_from
    if start.endswith(".yaml"):
        raise ConfigurationError(
            f"start_from is the recipe {start}: comparing trains it first; here give a checkpoint"
        )
    problem = build_problem(config, image, trained=not resume)
    if start and not resume:
        checkpoint = checkpoints.load(Path(start))
        _check_unseen(config.data, checkpoint.config.get("data"), start)
        checkpoint.start(problem)
    return problem


def _check_unseen(data: DataSet, before: object, start: str) -> None:
    """Raises where a start was trained on classes that validation or test will draw."""
    if not isinstance(before, Mapping):  # A caller of train may save anything, or nothing.
        return
    try:
        other = config_from({"data": before}).data
    except ConfigurationError:
        return
    held_out = data.published_classes("val") + data.published_classes("test")
    seen = not set(held_out).isdisjoint(other.published_classes("train"))
    if seen or (data.images == other.images and data.division != other.division):
        raise ConfigurationError(
            f"start_from is {start}, which was trained on classes that are validation or "
            "test classes here, so that accuracies would flatter: start from a run with the same "
            "division of classes"
        )
