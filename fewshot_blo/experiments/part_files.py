"""Files of parts of an evaluation, which ``fewshot-blo merge`` puts together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.errors import CheckpointError
from fewshot_blo.evaluation.counts import Counts
from fewshot_blo.evaluation.result import Evaluation, Part
from fewshot_blo.experiments.measuring import Measured
from fewshot_blo.records.json_files import read_json, write_json
from fewshot_blo.records.quantity import Quantity
from fewshot_blo.records.shard import Shard

_KIND = "part of an evaluation"
USUAL = Path("evaluation.json")


def part_path(output: Path | None, shard: Shard) -> Path:
    """Where a part is written, beside the output of the whole: ``evaluation-2-of-4.json``."""
    whole = output or USUAL
    return whole.with_name(f"{whole.stem}-{shard.number}-of-{shard.count}{whole.suffix}")


def write_part(measured: Measured, path: Path) -> None:
    """Writes a part as JSON with a digest.

    Raises:
        OSError: if the file cannot be written.
    """
    found = {
        name: [_plain(evaluation) for evaluation in evaluations]
        for name, evaluations in measured.evaluations.items()
    }
    content = {
        "provenance": dict(measured.provenance),
        "notes": list(measured.notes),
        "settings": dict(measured.settings),
        "digests": dict(measured.digests),
    }
    write_json(path, {"kind": _KIND, **content, "checkpoints": found})


def read_part(path: Path) -> Measured:
    """What ``write_part`` wrote.

    Raises:
        CheckpointError: if the file is damaged, or is no part of an evaluation.
        OSError: if it cannot be read.
    """
    content = read_json(path)
    if content.get("kind") != _KIND:
        raise CheckpointError(
            f"{path} is no part of an evaluation: name files that evaluate wrote with --shard"
        )
    try:
        found = {
            name: [_evaluation(own) for own in evaluations]
            for name, evaluations in content["checkpoints"].items()
        }
        known = (content[name] for name in ("notes", "provenance", "settings", "digests"))
        return Measured(found, *known)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} was written by another version ({error}): evaluate this part again"
        ) from error


def _plain(evaluation: Evaluation) -> Mapping[str, Any]:
    assert evaluation.part is not None
    return {
        "norm": evaluation.norm,
        "episodes": evaluation.episodes,
        "steps": evaluation.steps,
        "precision": evaluation.precision,
        "views": evaluation.views,
        "drawn_from": evaluation.drawn_from,
        "part": asdict(evaluation.part),
        "metric": asdict(evaluation.metric),
        "task_values": evaluation.values.tolist(),
        "others": [[asdict(m), values.tolist()] for m, values in evaluation.others.items()],
        "class_names": list(evaluation.class_names),
        "pairs": evaluation.counts.pairs.tolist(),
        "bins": evaluation.counts.bins.tolist(),
    }


def _evaluation(own: Mapping[str, Any]) -> Evaluation:
    pairs = torch.tensor(own["pairs"], dtype=torch.int64).reshape(-1, 3)
    return Evaluation(
        own["norm"],
        own["episodes"],
        own["steps"],
        torch.tensor(own["task_values"], dtype=torch.float64),
        own["class_names"],
        Counts(pairs, torch.tensor(own["bins"], dtype=torch.int64)),
        own["precision"],
        own["views"],
        Part(**{**own["part"], "shard": Shard(**own["part"]["shard"])}),
        Quantity(**own["metric"]),
        {Quantity(**m): torch.tensor(x, dtype=torch.float64) for m, x in own["others"]},
        own["drawn_from"],
    )
