"""Trains a run from its settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.experiments.data import build_outputs, build_sampler
from fewshot_blo.experiments.history import history_of
from fewshot_blo.experiments.origin import origin_of, start_checkpoints
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.recipes import names_settings
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.tasks.split import TaskSplits
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
        ConfigurationError: if settings contradict each other, or as ``build_start``.
        DataError: if a split has too few classes, or classes with too few images, for the tasks.
    """
    config = with_classes(config, splits)
    outputs = build_outputs(config, splits.train)
    problem = build_start(config, splits.train.shape, outputs=outputs, resume=resume)
    training = build_sampler(config, splits.train, training=True)
    validation = build_sampler(config, splits.validation, training=False)
    if tested:
        build_sampler(config, splits.test, training=False)
    origin = origin_of(config, splits, training, validation, resume=resume)
    if not resume:
        _check_starts(config, splits)
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
        origin=origin,
        progress=progress,
        validated=validated,
    )


def _check_starts(config: Config, splits: TaskSplits) -> None:
    """Checks what the runs that a run is begun from were trained on, and says what is not known."""
    for _, path, checkpoint in start_checkpoints(config):
        history = history_of(checkpoint)
        held_out = (
            name
            for split in (splits.validation, splits.test)
            for name in config.data.divided_names(split)
        )
        history.check_held_out(config.data, [*held_out], path)
        for sentence in history.gaps(path):
            warnings.warn(sentence, stacklevel=2)


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
        ConfigurationError: if ``start_from`` is a recipe, or it or a run before it was trained on
            classes that are validation or test classes here; or as ``build_problem``.
    """
    start = config.start_from
    if names_settings(start):
        raise ConfigurationError(
            f"start_from is the recipe {start}: compare trains it first; here name a checkpoint"
        )
    problem = build_problem(config, image, outputs=outputs, trained=not resume)
    for setting, path, checkpoint in () if resume else start_checkpoints(config):
        history_of(checkpoint).check_unseen(config.data, setting, path)
        if setting == "start_from":
            checkpoint.start(problem)
    return problem
