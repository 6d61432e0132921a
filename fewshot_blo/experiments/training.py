"""Trains a run from its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.experiments.data import build_outputs, build_sampler
from fewshot_blo.experiments.origin import origin_of
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.recipes import names_settings
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.tasks.catalogue import DataSet
from fewshot_blo.tasks.split import TaskSplits
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.train import TrainResult, train


def train_from_config(
    config: Config,
    splits: TaskSplits,
    folder: Path,
    *,
    resume: bool,
    tested: bool,
    progress: bool = True,
    validated: Callable[[int, Evaluation], None] | None = None,
) -> TrainResult:
    """Builds the problem and the samplers from the settings, and trains in ``folder``.

    Args:
        config: the settings.
        splits: the data set of the settings.
        folder: folder of the run.
        resume: continue from ``last.pt``.
        tested: whether test tasks will be drawn afterwards; if so, an error is raised before
            training if the test classes are too few or too small.
        progress, validated: as in ``train``.

    Raises:
        CheckpointError: as ``train``, or if the checkpoint ``start_from`` does not fit, or a
            resumed run was begun from another, or with other data.
        ConfigurationError: if settings contradict each other.
        DataError: if a split has too few classes, or classes with too few images, for the tasks.
    """
    config = with_classes(config, splits)
    outputs = build_outputs(config, splits.train)
    problem = build_start(config, splits.train.shape, outputs=outputs, resume=resume)
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
        origin=origin_of(config, splits, training, validation, resume=resume),
        progress=progress,
        validated=validated,
    )


def _today(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The saved settings of a run that is resumed, in the present form."""
    try:
        return config_from(saved).plain()
    except ConfigurationError as error:
        raise CheckpointError(
            f"the run was started with settings that are unknown to this version ({error}): resume "
            "it with the version that started it, or choose another folder"
        ) from error


def with_classes(config: Config, splits: TaskSplits) -> Config:
    """The settings with ``classes`` set to the number of training classes if it is 0."""
    if config.problem.settings.get("classes") != 0:
        return config
    count = len(splits.train.class_names)
    return replace(config, problem=config.problem.changed(classes=count))


def build_start(
    config: Config, image: torch.Size, *, outputs: int | None = None, resume: bool = False
) -> FewShotProblem:
    """Builds the problem with the weights that training starts from, those of ``start_from``.

    Args:
        config: the settings, after ``with_classes``.
        image: shape of one example, ``[C, H, W]`` of an image.
        outputs: as in ``build_problem``.
        resume: whether a checkpoint will supply the weights, so that none are loaded here.

    Raises:
        CheckpointError: if the checkpoint ``start_from`` does not fit.
        ConfigurationError: if ``start_from`` is a recipe, or was trained on classes that are
            validation or test classes here; or as ``build_problem``.
    """
    start = config.start_from
    if names_settings(start):
        raise ConfigurationError(
            f"start_from is the recipe {start}: compare trains it first; here name a checkpoint"
        )
    problem = build_problem(config, image, outputs=outputs, trained=not resume)
    if start and not resume:
        checkpoint = checkpoints.load(Path(start))
        _check_unseen(config.data, checkpoint.config.get("data"), start)
        checkpoint.start(problem)
    return problem


def _check_unseen(data: DataSet, before: object, start: str) -> None:
    """Raises if the start was trained on classes that are validation or test classes here."""
    if not isinstance(before, Mapping):  # The config saved by train may be None or anything.
        return
    try:
        other = config_from({"data": before}).data
    except ConfigurationError:
        return
    if data.holds_out_classes_of(other):
        raise ConfigurationError(
            f"start_from is {start}, which was trained on classes that are validation or "
            "test classes here, so that accuracies would be too high: start from a run with the "
            "same split of the classes"
        )
