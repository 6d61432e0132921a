"""Which settings may differ where a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewshot_blo.errors import CheckpointError
from fewshot_blo.records.loggers.logger import flat

CONFIG = "config.yaml"
"""File with the settings of a run, in its folder."""

MAY_CHANGE = {
    "device",
    "data.root",
    "data.download",
    "data.refresh",
    "train.memory",
    "train.graph",
    "train.save_minutes",
    "train.loggers",
    "start_from",
    "encoder.weights",
}
"""Settings that may change on resuming: they do not affect any outer step."""


def check_resumable(
    saved: Mapping[str, Any], own: Mapping[str, Any], file: Path, *, may_extend: bool
) -> None:
    """Checks that a run with a checkpoint's settings can go on with others.

    Args:
        saved: settings of the checkpoint.
        own: settings to go on with.
        file: path of the checkpoint.
        may_extend: whether no step depends on the total number of steps.

    Raises:
        CheckpointError: if a setting differs and any step depends on it.
    """
    before, now = flat(saved), flat(own)
    differ = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    refused = sorted(differ - MAY_CHANGE - ({"train.steps"} if may_extend else set()))
    if not refused:
        return
    values = ", ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in refused)
    hint = ""
    if "train.steps" in refused:
        hint = " (the schedule depends on the number of steps; only a run with the "
        hint += "constant schedule can be extended)"
    raise CheckpointError(
        f"{file} has another configuration: {values}{hint}; resume with the settings in "
        f"{file.parent / CONFIG}, or choose another folder"
    )
