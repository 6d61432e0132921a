"""``fewshot-blo compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fewshot_blo.commands.options import Options
from fewshot_blo.commands.words import names_in
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.compare import compare, compare_part
from fewshot_blo.experiments.reproduce import check_given, reproduce
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.experiments.settings import SLOTS
from fewshot_blo.experiments.sharing import Sharing
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, NotEmpty
from fewshot_blo.records.shard import Shard


@checked
@dataclass(frozen=True)
class CompareRequest:
    """What to compare. The same command goes on after Ctrl-C.

    Attributes:
        sources: recipes (YAML), folders of runs, or checkpoints; recipes without a finished run
            are trained.
        folder: folder of new runs and the table.
        seeds: seeds of training recipes, 0 by default; with reproduce, seeds besides those of the
            published rows.
        max_steps: train recipes of more outer steps for so many only.
        reproduce: published rows to train again with their own settings, in place of sources;
            recipes --rows lists them.
    """

    sources: Sequence[Path] = ()
    folder: Path = Path("runs/compare")
    seeds: Annotated[Sequence[Natural], NotEmpty()] | None = None
    max_steps: Counting | None = None
    reproduce: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.reproduce and (self.sources or self.max_steps is not None):
            name, value = (
                ("sources", ", ".join(map(str, self.sources)))
                if self.sources
                else ("max_steps", self.max_steps)
            )
            raise ConfigurationError(
                f"{name} is {value}, and published rows are reproduced with their own settings: "
                f"leave it out, or compare the runs afterwards, in {self.folder}"
            )
        if not self.sources and not self.reproduce:
            raise ConfigurationError(
                "there is nothing to compare: name recipes, runs or checkpoints, or published rows "
                "with --reproduce"
            )


@dataclass(frozen=True)
class _Options(Options):
    """The options; settings of an evaluation that are given must be those of published rows."""

    def parse(self, words: Sequence[str]) -> list[Any]:
        """As ``Options.parse``.

        Raises:
            ConfigurationError: also if a published row has another value.
        """
        measured, request, *others = super().parse(words)
        own = [name.partition(".")[0] for name, _ in names_in(words)]
        given = [name for name in own if name in EvaluationRequest.__dataclass_fields__]
        if request.reproduce and given:
            check_given(request.reproduce, measured, given)
        return [measured, request, *others]


PROCESSES = "shards"
OPTIONS = _Options((EvaluationRequest, CompareRequest, Sharing), positional="sources", slots=SLOTS)


def run(measured: EvaluationRequest, request: CompareRequest, sharing: Sharing) -> int:
    """Runs it; returns the exit status."""
    shard = sharing.part
    if request.reproduce:
        _reproduce(measured, request, sharing)
    elif shard is None:
        compare(list(request.sources), measured, **_settings(request, sharing))
    else:
        runs = run_part(measured, request, sharing, shard)
        print(
            f"part {shard} is done, {runs} run{'' if runs == 1 else 's'}; when all {shard.count} "
            "are, the same command without --shard prints the table"
        )
    return 0


def run_part(
    measured: EvaluationRequest, request: CompareRequest, sharing: Sharing, shard: Shard
) -> int:
    """Trains and evaluates the runs of a part; returns their number.

    Raises:
        ConfigurationError: if published rows are to be reproduced.
    """
    _check_whole(request, shard)
    return compare_part(list(request.sources), measured, shard, **_settings(request, sharing))


def _reproduce(measured: EvaluationRequest, request: CompareRequest, sharing: Sharing) -> None:
    _check_whole(request, sharing.part)
    reproduce(
        request.reproduce,
        measured,
        folder=request.folder,
        seeds=request.seeds or (),
        jobs=sharing.jobs,
    )


def _check_whole(request: CompareRequest, shard: Shard | None) -> None:
    if request.reproduce and shard is not None:
        raise ConfigurationError(
            f"shard is {shard}, and published rows are reproduced one after another: start one "
            "command a row, with a folder of its own"
        )


def _settings(request: CompareRequest, sharing: Sharing) -> dict[str, Any]:
    return {
        "folder": request.folder,
        "seeds": request.seeds,
        "max_steps": request.max_steps,
        "jobs": sharing.jobs,
    }
