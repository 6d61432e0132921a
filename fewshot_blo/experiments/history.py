"""``History``: what a run and its starts were trained on, as its checkpoints keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.records.older import settings_of_run
from fewshot_blo.tasks.catalogue import DataSet
from fewshot_blo.training.checkpoint import Checkpoint

_NO_NAMES = torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Trained:
    """Data that a run was trained on.

    Attributes:
        data: its data set.
        classes: digests of the names of its training classes, or groups; empty if unknown.
    """

    data: DataSet
    classes: frozenset[int] = frozenset()

    def recorded(self, data: DataSet, names: Sequence[str]) -> set[int]:
        """Positions of the names of a data set that are those of training classes."""
        own = (data.published_name(name) for name in names)
        return {place for place, name in enumerate(own) if _digest(name) in self.classes}


@dataclass(frozen=True)
class History:
    """What a run was trained on, and the runs that it was begun from.

    Attributes:
        trained: the data of the run itself, then those of its starts.
        unknown: paths of starts of which nothing is known.
    """

    trained: tuple[Trained, ...] = ()
    unknown: tuple[str, ...] = ()

    def check_unseen(self, data: DataSet, setting: str, path: str) -> None:
        """Checks that a run may be trained on a data set from weights with this history.

        Raises:
            ConfigurationError: if they were trained on validation or test classes of it.
        """
        for place, one in enumerate(self.trained):
            if data.holds_out_classes_of(one.data):
                before = "begun from a run that was " if place else ""
                raise ConfigurationError(
                    f"{setting} is {path}, which was {before}trained on classes that are "
                    "validation or test classes here, so that accuracies would be too high: start "
                    "from a run with the same split of the classes"
                )

    def check_held_out(self, data: DataSet, names: Sequence[str], path: str) -> None:
        """Checks the names of validation and test classes, as ``check_unseen``.

        Raises:
            ConfigurationError: if the weights were trained on some of them.
        """
        for one in self.trained:
            seen = one.recorded(data, names) if one.data.images == data.images else set()
            if seen:
                raise ConfigurationError(
                    f"{path} was trained on {len(seen)} of the {len(names)} validation and test "
                    f"classes here, as {names[min(seen)]}, so that accuracies would be too high: "
                    "start from a run with the same split of the classes"
                )

    def gaps(self, path: object) -> list[str]:
        """Sentences on starts of which nothing is known."""
        return [
            f"{path} was begun from {start}, and what that was trained on is not known, since a "
            "checkpoint of an earlier version has no record of it"
            for start in self.unknown
        ]


def entry(config: Config, split: Any) -> dict[str, Any]:
    """``Trained`` as plain data, of a run's settings and its training split."""
    names = {config.data.published_name(name) for name in config.data.divided_names(split)}
    classes = torch.tensor(sorted(map(_digest, names)), dtype=torch.int64)
    return {"data": config.plain()["data"], "classes": classes}


def lineage(checkpoint: Checkpoint) -> dict[str, list[Any]]:
    """The history of a checkpoint as plain data; of earlier versions, what their settings say."""
    origin, config = checkpoint.origin, checkpoint.config
    if "trained" in origin:
        return {"trained": [*origin["trained"]], "unknown": [*origin.get("unknown", ())]}
    start = ""
    with suppress(ConfigurationError, TypeError, AttributeError):  # Settings of any program.
        start = str(settings_of_run(config).get("start_from") or "")
    known = isinstance(config.get("data"), Mapping)
    return {
        "trained": [{"data": config["data"], "classes": _NO_NAMES}] if known else [],
        "unknown": [start] if start else [],
    }


def history_of(checkpoint: Checkpoint) -> History:
    """The history of a checkpoint.

    Raises:
        CheckpointError: if its record is not one that ``train_from_config`` wrote.
    """
    return read_history(lineage(checkpoint))


def read_history(plain: Mapping[str, Any]) -> History:
    """A history from plain data, without data sets that are unknown to this version.

    Raises:
        CheckpointError: if it has another form.
    """
    try:
        found = [(_data(one["data"]), _numbers(one["classes"])) for one in plain["trained"]]
        unknown = tuple(str(start) for start in plain.get("unknown", ()))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint's record of what it was trained on has another form ({error}): use a "
            "file written by train"
        ) from error
    return History(tuple(Trained(d, c) for d, c in found if d is not None), unknown)


def _data(settings: Any) -> DataSet | None:
    with suppress(ConfigurationError):
        return config_from({"data": settings}).data
    return None


def _numbers(classes: Tensor) -> frozenset[int]:
    return frozenset(int(number) for number in classes.tolist())


def _digest(name: str) -> int:
    return int.from_bytes(sha256(name.encode()).digest()[:8], "little", signed=True)
