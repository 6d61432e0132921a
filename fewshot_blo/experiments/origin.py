"""What a run is begun from: digests of weights and data, which its checkpoints keep."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.backbones.weights import read_weights, trained_weights
from fewshot_blo.errors import CheckpointError
from fewshot_blo.evaluation.parts import digest, sampled
from fewshot_blo.experiments.settings import Config
from fewshot_blo.tasks import TaskSource
from fewshot_blo.tasks.catalogue import DataSet
from fewshot_blo.tasks.split import TaskSplits
from fewshot_blo.training import checkpoint as checkpoints


def origin_of(
    config: Config,
    splits: TaskSplits,
    training: TaskSource,
    validation: TaskSource,
    *,
    resume: bool,
) -> Mapping[str, Any]:
    """The origin of a run, as ``train`` takes it, with its training classes as ``trained``.

    Args:
        config: settings of the run.
        splits: its data.
        training, validation: tasks of these.
        resume: whether the run is begun already, so that it needs no file of weights any more; the
            digest of one that cannot be read is then None.

    Raises:
        CheckpointError: if a file of weights cannot be read.
    """
    data = config.data
    trained = {"data": config.plain()["data"], "classes": _digests(data, splits.train)}
    return {
        "starts": starts(config, resume=resume),
        "data": {
            "training": _of_data(data, splits.train, training),
            "validation": _of_data(data, splits.validation, validation),
        },
        "trained": [trained],
    }


def starts(config: Config, *, resume: bool) -> Mapping[str, str | None]:
    """Digests of the weights that a run is begun from, by setting; "" without.

    Raises:
        CheckpointError: if a file of weights cannot be read, and the run is not begun yet.
    """
    weights = str(config.encoder.settings.get("weights") or "")
    found: dict[str, str | None] = {}
    for name, path, read in (
        ("start_from", config.start_from, _of_start),
        ("encoder.weights", weights, _of_weights),
    ):
        try:
            found[name] = read(Path(path)) if path else ""
        except CheckpointError:
            if not resume:
                raise
            found[name] = None
    return found


def _of_start(path: Path) -> str:
    start = checkpoints.load(path)
    return digest({**start.outer, **start.buffers})


def _of_weights(path: Path) -> str:
    return digest(trained_weights(path) or read_weights(path))


def _of_data(data: DataSet, split: Any, source: TaskSource) -> tuple[str, str]:
    """Text, and a digest of it, of the names and of a sample of the examples."""
    text = split.describe()
    return text, digest(sampled(source), text, *data.divided_names(split))


def _digests(data: DataSet, split: Any) -> Tensor:
    """Short digests of the names of a split's classes, int64 ``[classes]``."""
    names = {data.published_name(name) for name in data.divided_names(split)}
    return torch.tensor(sorted(map(_digest, names)), dtype=torch.int64)


def _digest(name: str) -> int:
    return int.from_bytes(sha256(name.encode()).digest()[:8], "little", signed=True)


def trained_classes(data: DataSet, split: Any, origin: Mapping[str, Any]) -> Collection[int]:
    """Positions of a split's classes that a run with this origin was trained on.

    Args:
        data: the data set of the run.
        split: a split of it.
        origin: origin in the run's checkpoint; of one that is empty nothing is known.
    """
    trained = [entry["classes"] for entry in origin.get("trained", ())[:1]]
    seen = {number for classes in trained for number in classes.tolist()}
    names = data.divided_names(split)
    return {p for p, name in enumerate(names) if _digest(data.published_name(name)) in seen}
