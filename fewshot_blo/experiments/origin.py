"""What a run is begun from: digests of the weights, which its checkpoints keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewshot_blo.backbones.weights import read_weights, trained_weights
from fewshot_blo.errors import CheckpointError
from fewshot_blo.evaluation.parts import digest
from fewshot_blo.experiments.settings import Config
from fewshot_blo.training import checkpoint as checkpoints


def origin_of(config: Config, *, resume: bool) -> Mapping[str, Any]:
    """The origin of a run, as ``train`` takes it.

    Args:
        config: settings of the run.
        resume: whether the run is begun already, so that it needs no file any more; the digest of
            one that cannot be read is then None.

    Raises:
        CheckpointError: if a file of weights cannot be read.
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
    return {"starts": found}


def _of_start(path: Path) -> str:
    start = checkpoints.load(path)
    return digest({**start.outer, **start.buffers})


def _of_weights(path: Path) -> str:
    return digest(trained_weights(path) or read_weights(path))
