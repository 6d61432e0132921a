"""Which settings may differ where a run is resumed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
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

NOTHING_KNOWN: Mapping[str, Any] = MappingProxyType({})
"""The origin of a run of which nothing is kept but its settings."""


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


def same_start(
    saved: Mapping[str, Any],
    own: Mapping[str, Any],
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    file: Path,
) -> dict[str, Any]:
    """Checks that a run goes on from the weights that it was begun from.

    Their files may have moved, or be removed. Where the digest of either is not known and the path
    differs, a warning says so.

    Args:
        saved: origin in the checkpoint, as in ``train``; empty in those of earlier versions.
        own: origin to go on with; a digest is None where its file cannot be read any more.
        before: settings of the checkpoint.
        now: settings to go on with.
        file: path of the checkpoint.

    Returns:
        The settings to go on with: where a path differs and its weights cannot be compared, that
        of the checkpoint is kept.

    Raises:
        CheckpointError: if the weights differ.
    """
    config = copy.deepcopy(dict(now))
    for name, digest in own.get("starts", {}).items():
        first, path = flat(before).get(name) or "", flat(now).get(name) or ""
        known = saved.get("starts", {}).get(name)
        if digest == known or (first == path and None in (digest, known)):
            continue
        if None in (digest, known):
            warnings.warn(
                f"{file}: {name} was {first or 'empty'} and is {path or 'empty'}: whether these "
                "are the same weights cannot be told, since "
                + (f"{path} cannot be read" if known else "the checkpoint has no digest of them")
                + f"; the run goes on as one that was begun from {first or 'none'}",
                stacklevel=2,
            )
            _put(config, name, first)
            continue
        raise CheckpointError(
            f"{file} was begun from other weights: {name} was {_words(first, known)} and is "
            f"{_words(path, digest)}; set it to what it was begun from, or remove "
            f"{file.parent} to train it anew"
        )
    return config


def check_same_data(
    saved: Mapping[str, Any], own: Mapping[str, Any], before: Any, now: Any, file: Path
) -> None:
    """Checks that a run goes on with the data that it was begun with; their folder may have moved.

    Other values of the same names and numbers are told: they may be those of another decoder.

    Args:
        saved, own: origins as in ``same_start``.
        before, now: settings as in ``same_start``.
        file: path of the checkpoint.

    Raises:
        CheckpointError: if the classes or numbers of examples of training or validation differ.
    """
    first, second = (flat(config).get("data.root") for config in (before, now))
    place = f" (data.root was {first} and is {second})" if first != second else ""
    changed = []
    for what, (text, names, values) in own.get("data", {}).items():
        was, known, sample = saved.get("data", {}).get(what, (text, names, values))
        if names != known:
            same = f"{text} with other names"
            differ = same if was == text else f"{was} and are {text}"
            raise CheckpointError(
                f"{file} was begun with other {what} data{place}: they were {differ}; give it the "
                "data that it was begun with, or choose another folder for a new run"
            )
        changed += [what] if values != sample else []
    if changed:
        warnings.warn(
            f"{file} was begun with other values of the {' and '.join(changed)} data{place}: of "
            "the same classes, either the files were changed or they are decoded otherwise; the "
            "run goes on with these",
            stacklevel=2,
        )


def _words(path: str, digest: str) -> str:
    return f"{path} (weights {digest[:12]})" if digest else "empty"


def _put(config: dict[str, Any], name: str, value: str) -> None:
    *sections, key = name.split(".")
    for section in sections:
        config = config[section]
    config[key] = value
