"""``fewshot-blo evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewshot_blo.commands.launched import started
from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.measuring import measure, measure_by_jobs
from fewshot_blo.experiments.part_files import USUAL, part_path, write_part
from fewshot_blo.experiments.report import evaluate_checkpoints, report
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.experiments.settings import SLOTS
from fewshot_blo.experiments.sharing import Sharing
from fewshot_blo.records.checked import checked
from fewshot_blo.records.shard import Shard
from fewshot_blo.records.terminal import shown


@checked
@dataclass(frozen=True)
class Checkpoints:
    """What to evaluate.

    Attributes:
        checkpoints: files written by train; several are compared on the same tasks.
    """

    checkpoints: Sequence[Path] = ()

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise ConfigurationError(
                "there is no checkpoint to evaluate: name files that train wrote"
            )


PROCESSES = "together"
OPTIONS = Options((EvaluationRequest, Checkpoints, Sharing), positional="checkpoints", slots=SLOTS)


def run(request: EvaluationRequest, checkpoints: Checkpoints, sharing: Sharing) -> int:
    """Runs it; returns the exit status."""
    paths = list(checkpoints.checkpoints)
    if started() > 1 and (sharing.part or sharing.jobs > 1):
        raise ConfigurationError(
            f"torchrun divides the tasks among {started()} processes by itself: leave out shard "
            "and jobs"
        )
    if sharing.part is not None:
        return _run_part(paths, request, sharing.part, sharing.jobs)
    if min(sharing.jobs, request.tasks) > 1:
        measured = measure_by_jobs(paths, request, jobs=sharing.jobs, say=_say, progress=True)
        report(measured, request.output)
    else:
        evaluate_checkpoints(paths, request)
    return 0


def _run_part(paths: Sequence[Path], request: EvaluationRequest, shard: Shard, jobs: int) -> int:
    if jobs > 1:
        raise ConfigurationError(
            f"shard is {shard} and jobs is {jobs}: give one of them; more shards do the same"
        )
    path = part_path(request.output, shard)
    write_part(measure(paths, request, shard=shard, say=_say, progress=True), path)
    whole = request.output or USUAL
    every = shown(path.with_name(f"{whole.stem}-*-of-{shard.count}{whole.suffix}"))
    output = f" --output {shown(request.output)}" if request.output else ""
    print(
        f"part {shard} written to {shown(path)}; when all {shard.count} are there: "
        f"fewshot-blo merge {every}{output}"
    )
    return 0


def _say(sentence: str) -> None:
    print(sentence, flush=True)
