"""Reads recipes, which are YAML files of settings."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.components import Tree
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.records.checked import checked
from fewshot_blo.records.older import settings_of_run
from fewshot_blo.records.ranges import Counting
from fewshot_blo.records.shipped import recipe_file, recipe_instead_of


def names_settings(path: Path | str) -> bool:
    """Whether a name is that of a file of settings, by its suffix."""
    return str(path).endswith((".yaml", ".yml"))


def read_settings(path: Path) -> Tree:
    """The settings in a YAML file, or in a recipe of the package, converted to the present form.

    Raises:
        ConfigurationError: if the file cannot be read, or does not hold the settings of a run.
    """
    if is_study(path):
        raise ConfigurationError(f"{path} is a study: use fewshot-blo study")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} is not a file of settings: it must hold a mapping")
    return settings_of_run(at_home(content))


def read_yaml(path: Path) -> object:
    """What a YAML file holds, or, where there is no such file, a recipe of the package.

    Raises:
        ConfigurationError: if the file cannot be read.
    """
    content: object
    try:
        file = recipe_file(path).expanduser()
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}{recipe_instead_of(path)}"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{path} cannot be read: {reason}") from error
    return content


def at_home(value: Any) -> Any:
    """Settings with a leading ``~`` of paths replaced by the home folder."""
    if isinstance(value, dict):
        return {name: at_home(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [at_home(inner) for inner in value]
    if isinstance(value, str) and (value == "~" or value.startswith("~/")):
        return str(Path(value).expanduser())
    return value


@checked
def read_recipe(path: Path | str, root: str = "", max_steps: Counting | None = None) -> Config:
    """The settings of a recipe.

    Args:
        path: file of the recipe, or the name of one of the package, as omniglot-5w1s/maml.
        root: folder of the data set; empty for that of the recipe.
        max_steps: upper bound of the outer steps; None for no bound.

    Raises:
        ConfigurationError: if the file does not hold the settings of a run, or max_steps is not
            positive.
    """
    settings = read_settings(Path(path))
    try:
        config = config_from(settings)
    except ConfigurationError as error:
        raise ConfigurationError(f"recipe {path}: {error}") from error
    steps = config.train.steps if max_steps is None else min(config.train.steps, max_steps)
    data = config.data.changed(root=root) if root else config.data
    return replace(config, data=data, train=replace(config.train, steps=steps))


def with_seed(config: Config, seed: int) -> Config:
    """The settings of the run of a recipe with a training seed."""
    return replace(
        config,
        seed=seed,
        # Validation tasks use the seed after that of the training tasks.
        episodes=replace(config.episodes, seed=config.episodes.seed + 2 * seed),
        train=replace(config.train, seed=seed),
    )


def is_study(path: Path) -> bool:
    """Whether a recipe is that of a study, which has the key ``study`` at its top level."""
    with suppress(OSError):  # is_file raises it too, for names that are too long.
        file = recipe_file(path).expanduser()
        return file.is_file() and b"\nstudy:" in b"\n" + file.read_bytes()
    return False
