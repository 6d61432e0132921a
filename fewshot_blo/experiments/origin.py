"""What a run is begun from: digests of weights and data, and the history of its starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewshot_blo.backbones.weights import read_weights, trained_weights
from fewshot_blo.errors import CheckpointError
from fewshot_blo.evaluation.parts import digest, sampled
from fewshot_blo.experiments.history import entry, lineage
from fewshot_blo.experiments.settings import Config
from fewshot_blo.tasks import TaskSource
from fewshot_blo.tasks.catalogue import DataSet
from fewshot_blo.tasks.split import TaskSplits
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.checkpoint import Checkpoint


def origin_of(
    config: Config,
    splits: TaskSplits,
    training: TaskSource,
    validation: TaskSource,
    *,
    resume: bool,
) -> Mapping[str, Any]:
    """The origin of a run, as ``train`` takes it, with the data of its starts as ``trained``.

    Args:
        config: settings of the run.
        splits: its data.
        training, validation: tasks of these.
        resume: whether the run is begun already, so that it needs no file of weights any more; the
            digest of one that cannot be read is then None, and the history is that of the run's
            checkpoint.

    Raises:
        CheckpointError: if a file of weights cannot be read.
    """
    data = config.data
    trained, unknown = [entry(config, splits.train)], list[str]()
    for _, _, start in () if resume else start_checkpoints(config):
        before = lineage(start)
        trained += before["trained"]
        unknown += before["unknown"]
    return {
        "starts": starts(config, resume=resume),
        "data": {
            "training": _of_data(data, splits.train, training),
            "validation": _of_data(data, splits.validation, validation),
        },
        "trained": trained,
        "unknown": unknown,
    }


def start_checkpoints(config: Config) -> Iterator[tuple[str, str, Checkpoint]]:
    """Setting, path and checkpoint of each run that a run is begun from.

    Raises:
        CheckpointError: if a file of weights cannot be read.
    """
    if config.start_from:
        yield "start_from", config.start_from, checkpoints.load(Path(config.start_from))
    weights = _weights(config)
    if weights and trained_weights(Path(weights)) is not None:
        with suppress(CheckpointError):  # Of another program.
            yield "encoder.weights", weights, checkpoints.load(Path(weights))


def starts(config: Config, *, resume: bool) -> Mapping[str, str | None]:
    """Digests of the weights that a run is begun from, by setting; "" without.

    Raises:
        CheckpointError: if a file of weights cannot be read, and the run is not begun yet.
    """
    found: dict[str, str | None] = {}
    for name, path, read in (
        ("start_from", config.start_from, _of_start),
        ("encoder.weights", _weights(config), _of_weights),
    ):
        try:
            found[name] = read(Path(path)) if path else ""
        except CheckpointError:
            if not resume:
                raise
            found[name] = None
    return found


def _weights(config: Config) -> str:
    return str(config.encoder.settings.get("weights") or "")


def _of_start(path: Path) -> str:
    start = checkpoints.load(path)
    return digest({**start.outer, **start.buffers})


def _of_weights(path: Path) -> str:
    return digest(trained_weights(path) or read_weights(path))


def _of_data(data: DataSet, split: Any, source: TaskSource) -> tuple[str, str, str]:
    """Text, a digest of it and of the names, and one of a sample of the examples."""
    text = split.describe()
    return text, digest({}, text, *data.divided_names(split)), digest(sampled(source))
