"""Runs that are averaged: whether they differ in their seeds alone, and are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.components import Tree
from fewshot_blo.experiments.published import frozen
from fewshot_blo.experiments.settings import config_from
from fewshot_blo.records.loggers.logger import flat
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.run import LAST

_SEEDS = {"seed", "train.seed", "episodes.seed"}


def check_seeds_alone_differ(folder: Path, paths: Sequence[Path]) -> None:
    """Checks that the runs in a folder are of one method, whose results may be averaged.

    Args:
        folder: the folder, for errors.
        paths: a checkpoint of each run.

    Raises:
        CheckpointError: if one cannot be read.
        ConfigurationError: if settings other than seeds differ; the first three are named.
    """
    if len(paths) < 2:
        return
    first, *others = (_settings(checkpoints.load(path).config) for path in paths)
    for path, other in zip(paths[1:], others, strict=True):
        names = sorted(n for n in first.keys() | other.keys() if first.get(n) != other.get(n))
        if names:
            values = ", ".join(f"{n} is {first.get(n)} and {other.get(n)}" for n in names[:3])
            more = f", and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigurationError(
                f"{folder} has runs of different settings, {paths[0].parent.name} and "
                f"{path.parent.name} ({values}{more}): only runs that differ in their seeds are "
                "averaged; name each folder by itself"
            )


def steps_of(checkpoint: Path) -> tuple[int, int]:
    """Outer steps that the run of a checkpoint took so far, and those of its settings.

    Both are 0 where no run is beside the checkpoint, as with a released model.
    """
    last = checkpoint.with_name(LAST)
    if not last.is_file():
        return 0, 0
    state = checkpoints.load(last)
    return state.step, state.config.get("train", {}).get("steps", 0)


def _settings(saved: Mapping[str, Any]) -> Tree:
    try:
        found = flat(frozen(config_from(saved)))
    except (ConfigurationError, LookupError, TypeError, AttributeError):
        found = flat(saved)  # Of another version or program: the evaluation says what is wrong.
    # Which run it started from differs with the seed; whether it did, does not.
    started = "another run" if saved.get("start_from") else "random weights"
    return {**{n: own for n, own in found.items() if n not in _SEEDS}, "start_from": started}
