"""Compares methods on the same tasks: trains recipes, evaluates runs, writes table and figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.compared_runs import ComparedRuns, Run
from fewshot_blo.experiments.report import report
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.experiments.table import Row, write_comparison
from fewshot_blo.records.jobs import run_jobs
from fewshot_blo.records.locks import writing
from fewshot_blo.records.shard import Shard
from fewshot_blo.records.shipped import checkpoint_file, recipe_file
from fewshot_blo.training.run import BEST, LAST


def compare(
    sources: Sequence[Path],
    request: EvaluationRequest,
    *,
    folder: Path,
    seeds: Sequence[int] | None = None,
    max_steps: int | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> list[Row]:
    """Trains recipes that have no finished run, evaluates all on the same tasks, writes a table.

    Args:
        sources: recipes (YAML files of settings), folders of runs, or checkpoints; also names of
            recipes and released models of the package. A folder whose subfolders are runs counts as
            one method with several seeds.
        request: settings of the evaluation. Its ``root`` is the folder of the recipes' data set;
            its ``output`` is replaced by ``<folder>/evaluation.json``.
        folder: folder of the table and of the runs of recipes, ``<folder>/<recipe>/seed<k>``.
        seeds: training seeds of the recipes; None for 0.
        max_steps: upper bound of the outer steps of the recipes; None for no bound.
        jobs: number of processes of this machine that train and evaluate runs beside each other.
        progress: print the table and the progress of training and evaluation; False is silent.

    Returns:
        A row for each source.

    Raises:
        CheckpointError: if a source holds no checkpoint, or another process writes to the folder.
        ChildProcessError: if a job was killed.
        ConfigurationError: if a recipe cannot be read, two sources have the same name, or their
            data sets or tasks differ, or seeds or max_steps are given and no source is a recipe.
        KeyboardInterrupt: if training was interrupted; the same call resumes it.
    """
    sources = _files(sources)
    names = _names(sources)
    runs = _runs(sources, request, folder, seeds, max_steps, progress)
    runs.groups()  # Refuses what cannot be compared before anything is written.
    with writing(folder):
        rows = run_all(runs, names, folder / "evaluation.json", jobs=jobs)
        table = write_comparison(rows, folder)
        runs.forget([path for row in rows for path in row.checkpoints])
    if progress:
        print(table)
    return rows


def run_all(runs: ComparedRuns, names: Sequence[str], output: Path, *, jobs: int = 1) -> list[Row]:
    """Trains and evaluates runs, and writes their figures to a JSON file.

    Args:
        runs: the runs.
        names: a name for each of their sources.
        output: the file.
        jobs: as in ``compare``.

    Returns:
        A row for each source.
    """
    if jobs > 1:
        _prepare(runs, runs.groups(), jobs)
    found = [[runs.train(run) for run in runs.of(source)] for source in runs.sources]
    measured = runs.measure([path for group in found for path in group])
    report(measured, output, progress=runs.progress)
    return [
        Row(name, group, [measured.evaluations[str(path)] for path in group])
        for name, group in zip(names, found, strict=True)
    ]


def compare_part(
    sources: Sequence[Path],
    request: EvaluationRequest,
    shard: Shard,
    *,
    folder: Path,
    seeds: Sequence[int] | None = None,
    max_steps: int | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> int:
    """Trains and evaluates a part of the runs of a comparison, beside those of other processes.

    Each run has its own folder, into which one process writes at a time. Once all parts are done,
    ``compare`` with the same arguments writes the table without training or evaluating again.

    Args:
        sources, request, folder, seeds, max_steps, jobs, progress: as in ``compare``.
        shard: the part. Runs that start from the same run are in the same part.

    Returns:
        Number of runs of the part.

    Raises:
        CheckpointError, ChildProcessError, ConfigurationError, KeyboardInterrupt: as ``compare``.
    """
    sources = _files(sources)
    _names(sources)
    runs = _runs(sources, request, folder, seeds, max_steps, progress)
    groups = shard.of(runs.groups())
    _prepare(runs, groups, jobs)
    return sum(map(len, groups))


def _runs(
    sources: Sequence[Path],
    request: EvaluationRequest,
    folder: Path,
    seeds: Sequence[int] | None,
    max_steps: int | None,
    progress: bool,
) -> ComparedRuns:
    runs = ComparedRuns(
        sources, request, folder, (0,) if seeds is None else seeds, max_steps, progress
    )
    for name, value in (("seeds", seeds), ("max_steps", max_steps)):
        if value is not None and not runs.recipes:
            raise ConfigurationError(
                f"{name} is {value}, and no source is a recipe: runs and checkpoints are not "
                "trained again; leave it out"
            )
    return runs


def _prepare(runs: ComparedRuns, groups: Sequence[Sequence[Run]], jobs: int) -> None:
    if jobs > 1:
        make = partial(_preparation, replace(runs))  # A copy without what was loaded.
        for _ in run_jobs(make, groups, jobs, progress=runs.progress):
            pass
    else:
        for group in groups:
            runs.prepare(group)


def _preparation(runs: ComparedRuns) -> Callable[[Sequence[Run]], None]:
    return runs.prepare


def _files(sources: Sequence[Path]) -> list[Path]:
    """The sources, with the files of recipes and released models that are given by name."""
    return [checkpoint_file(recipe_file(source)) for source in sources]


def _names(sources: Sequence[Path]) -> list[str]:
    names = [_name(source) for source in sources]
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"two sources have the same name: {', '.join(sorted(names))}; rename one"
        )
    return names


def _name(source: Path) -> str:
    """The name of a source: that of the recipe's file, or of the run's folder."""
    if source.name in (BEST, LAST):
        return source.parent.name
    return source.stem if source.is_file() else source.name
