"""``fewshot-blo study``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.sharing import Sharing
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural, NotEmpty
from fewshot_blo.records.shard import Shard
from fewshot_blo.studies import RowSettings, Study, read_study, run_study, run_study_part


@checked
@dataclass(frozen=True)
class StudyRequest:
    """Which study. The same command goes on after Ctrl-C.

    Attributes:
        recipe: file of a study (recipes/studies).
        root: folder of the data set.
        folder: folder of the rows and the table; by default runs/RECIPE.
        seeds: seeds of the study.
        only: names of rows, where not all are to be solved.
    """

    recipe: Path | None = None
    root: str = ""
    folder: Path | None = None
    seeds: Annotated[Sequence[Natural], NotEmpty()] = (0,)
    only: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.recipe is None:
            raise ConfigurationError("there is no study: name its recipe (recipes/studies)")


PROCESSES = "shards"
OPTIONS = Options((StudyRequest, Sharing), positional="recipe")


def run(request: StudyRequest, sharing: Sharing) -> int:
    """Runs it; returns the exit status."""
    shard = sharing.part
    if shard is None:
        study, rows, folder = _read(request)
        run_study(study, rows, folder, seeds=request.seeds, jobs=sharing.jobs)
        return 0
    count = run_part(request, sharing, shard)
    print(
        f"part {shard} is done, {count} row{'' if count == 1 else 's'}; when all {shard.count} "
        "are, the same command without --shard prints the table"
    )
    return 0


def run_part(request: StudyRequest, sharing: Sharing, shard: Shard) -> int:
    """Solves the rows of a part; returns their number."""
    study, rows, folder = _read(request)
    return run_study_part(study, rows, folder, shard, seeds=request.seeds, jobs=sharing.jobs)


def _read(request: StudyRequest) -> tuple[Study, Mapping[str, RowSettings], Path]:
    recipe = request.recipe
    assert recipe is not None
    study, rows = read_study(recipe, request.root)
    unknown = sorted(set(request.only) - set(rows))
    if unknown:
        raise ConfigurationError(f"there is no row '{unknown[0]}'; there are {', '.join(rows)}")
    rows = {name: row for name, row in rows.items() if not request.only or name in request.only}
    return study, rows, request.folder or Path("runs") / recipe.stem
