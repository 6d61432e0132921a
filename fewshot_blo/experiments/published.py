"""The settings of published rows: how they are frozen, and what of them a recipe has changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.parts import digest
from fewshot_blo.experiments.components import Tree, plain
from fewshot_blo.experiments.plan import Plan
from fewshot_blo.experiments.recipes import read_recipe
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.experiments.settings import SLOTS, Config, config_from
from fewshot_blo.records.loggers.logger import flat
from fewshot_blo.records.published import PublishedRow
from fewshot_blo.records.shipped import released_models
from fewshot_blo.training.checkpoint import Checkpoint
from fewshot_blo.training.resumable import MAY_CHANGE

_REMEDY = (
    "write the published value into the recipe of a row, and put other settings into a file of "
    "their own"
)


def frozen(config: Config) -> Tree:
    """All settings of a run that affect its outer steps, defaults included, as plain data."""
    return _frozen(config.plain())


def _frozen(tree: Mapping[str, Any], place: str = "") -> Tree:
    found: Tree = {}
    for name, value in tree.items():
        if place + name in MAY_CHANGE:
            continue
        if isinstance(value, Mapping):
            value = _frozen(value, f"{place}{name}.")
        # JSON has no infinity; settings read it as a word.
        found[name] = "inf" if value == float("inf") else value
    return found


def digest_of_measured(checkpoint: Checkpoint) -> str:
    """SHA-256 of what an evaluation of a checkpoint depends on.

    That is its weights and buffers, and its settings apart from those of the outer loop (``train``)
    and of the machine.
    """
    settings = {name: own for name, own in _frozen(checkpoint.config).items() if name != "train"}
    tensors = {**checkpoint.outer, **{f"buffer {n}": b for n, b in checkpoint.buffers.items()}}
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    return digest(tensors, json.dumps(settings, sort_keys=True, default=str))


def config_of(row: PublishedRow) -> Config:
    """The settings of the training of a row, with its bound of the outer steps.

    Raises:
        ConfigurationError: if the row has no training of its own, or a setting is unknown today.
    """
    if not row.settings:
        raise ConfigurationError(
            f"the published row {row.name} evaluates {row.of} and has no training of its own: name "
            f"{row.of}"
        )
    try:
        config = config_from(row.settings)
    except ConfigurationError as error:
        raise ConfigurationError(f"published row {row.name}: {error}; {_REMEDY}") from error
    steps = min(config.train.steps, row.max_steps or config.train.steps)
    return replace(config, train=replace(config.train, steps=steps))


def request_of(row: PublishedRow, **machine: Any) -> EvaluationRequest:
    """The settings of the evaluation of a row.

    Args:
        row: the row.
        machine: settings that do not affect what is measured: root, device, chunk.

    Raises:
        ConfigurationError: if a setting is unknown today.
    """
    request: EvaluationRequest = Plan(
        SLOTS, EvaluationRequest, "", {**row.evaluation, **machine}
    ).build()
    return request


def changes(row: PublishedRow, rows: Mapping[str, PublishedRow]) -> Iterator[str]:
    """What the recipe of a row has changed since the row was measured, a sentence a setting.

    Args:
        row: a row with training of its own.
        rows: all rows.
    """
    try:
        recipe = read_recipe(row.recipe)
        today = _frozen(plain(SLOTS, recipe))
        # Settings that are new since have their default on both sides, if the recipe leaves it.
        same = today == row.settings
        before = today if same else frozen(config_from(row.settings))
    except ConfigurationError as error:
        yield f"published row {row.name}: {error}; {_REMEDY}"
        return
    measured = {**flat(before), "start_from": _start(row, rows)}
    today = {**flat(today), "start_from": recipe.start_from}
    for name in measured.keys() | today.keys():
        was, now = (repr(tree[name]) if name in tree else "absent" for tree in (measured, today))
        if was != now:
            yield (
                f"published row {row.name}: {name} was {was} when it was measured, and is {now} in "
                f"recipe {row.recipe}; {_REMEDY}"
            )


def _start(row: PublishedRow, rows: Mapping[str, PublishedRow]) -> str:
    """What the recipe of a row names as the start of its training."""
    if row.start in ("", *released_models()):
        return row.start
    return Path(PurePosixPath(rows[row.start].recipe).name).with_suffix(".yaml").name
