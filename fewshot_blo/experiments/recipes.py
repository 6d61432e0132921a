"""Recipes: files of settings."""

from __future__ import annotations

from argparse import ArgumentError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.settings import Config


def read_recipe(path: Path, root: str = "", max_steps: int | None = None) -> Config:
    """The settings of a recipe, with the folder of its data and at most so many outer steps.

    Raises:
        ConfigurationError: if it is no file of settings or a study, or the steps are not positive.
    """
    if max_steps is not None and max_steps < 1:
        raise ConfigurationError(f"max_steps is {max_steps}: it must be at least 1")
    if is_study(path):
        raise ConfigurationError(f"{path} is a study: use fewshot-blo study")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Config)
    try:
        built = parser.instantiate(parser.parse_args([f"--config={path}"]))
    except (ArgumentError, OSError, TypeError) as error:
        raise ConfigurationError(f"recipe {path}: {' '.join(str(error).split())}") from error
    del built["config"]
    config = Config(**built)
    steps = config.train.steps if max_steps is None else min(config.train.steps, max_steps)
    return replace(
        config,
        data=replace(config.data, root=root or config.data.root),
        train=replace(config.train, steps=steps),
    )


def is_study(path: Path) -> bool:
    """Whether a recipe is of a study: it names one in a line of its own."""
    with suppress(OSError):  # from is_file, too, where the name is too long for one
        return path.is_file() and b"\nstudy:" in b"\n" + path.read_bytes()
    return False
