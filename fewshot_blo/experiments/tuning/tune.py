"""``tune``: searches settings of a recipe by their accuracy on its validation tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.data import build_sampler
from fewshot_blo.experiments.tuning.claims import turn
from fewshot_blo.experiments.tuning.picture import draw_search
from fewshot_blo.experiments.tuning.request import Pruner, TuneRequest
from fewshot_blo.experiments.tuning.results import (
    BEST_RECIPE,
    PICTURE,
    Row,
    best_of,
    summary,
    table,
    worth,
    write_results,
)
from fewshot_blo.experiments.tuning.search import Search
from fewshot_blo.experiments.tuning.store import quiet
from fewshot_blo.experiments.tuning.work import (
    printed,
    read_search,
    unsaid,
    work_of_job,
    work_on,
)
from fewshot_blo.records.interrupts import interrupts
from fewshot_blo.records.jobs import run_jobs
from fewshot_blo.records.quantity import Quantity


@dataclass(frozen=True)
class TuneResult:
    """What a search found.

    Attributes:
        best: the best settings as a recipe, ``<folder>/best.yaml``.
        rows: all trials.
        metric: what validation measured.
        interrupted: whether Ctrl-C or SIGTERM stopped it; the same call goes on.
    """

    best: Path
    rows: Sequence[Row]
    metric: Quantity
    interrupted: bool

    def __repr__(self) -> str:
        best = best_of(self.metric, self.rows)
        found = (
            f"trial {best.number}, {worth(self.metric, best)}" if best else "no trial is complete"
        )
        state = "interrupted, " if self.interrupted else ""
        return f"TuneResult({state}{len(self.rows)} trials, best: {found} in {self.best})"


def tune(
    recipe: Path | str,
    *,
    folder: Path | str = Path("runs/tune"),
    trials: int = 20,
    search: Sequence[str] = (),
    space: Path | str | None = None,
    jobs: int = 1,
    seed: int = 0,
    pruner: Pruner = "median",
    storage: str = "",
    root: str = "",
    max_steps: int | None = None,
    keep: bool = False,
    progress: bool = True,
) -> TuneResult:
    """Searches settings of a recipe by their accuracy on its validation tasks.

    Trial 0 is the recipe itself, so that the best trial is at least as good on these tasks. Others
    are drawn by the tree-structured Parzen estimator (TPE) of Optuna. Test tasks are not drawn. All
    trials train from the recipe's seeds. Writes ``table.md``, ``table.csv``, ``search.png``,
    ``best.yaml`` (a recipe) and the runs ``trials/000``, of which the best keeps its checkpoints.

    The same call goes on after an interrupt or a kill, and trials go on from their last
    checkpoints. Several processes, also on several machines, share a search by the same call with
    the same folder. One process repeats a search from its seed bit for bit if ``train.chunk`` is
    set, and else up to rounding.

    Args:
        recipe: YAML file of settings, such as the ``config.yaml`` of a run.
        folder: folder of the search.
        trials: number of trials in all.
        search: what is searched: ``"train.learning_rate=1e-4..1e-2:log"`` (a range),
            ``"strategy.inner.steps=1..10"`` (whole numbers), ``"problem.start=zeros,prototypes"``
            (choices), a name alone for a range around the recipe's value, or ``"usual"``. By
            default ``"usual"``: learning rate and weight decay, numbers and sizes of inner steps,
            weights of penalties, regularisation and damping, where the recipe has positive values.
        space: YAML file of the same, a mapping from names to ranges or lists of choices.
        jobs: number of processes of this machine, which divide its threads and its memory.
        seed: seed of the search.
        pruner: what ends a trial early by its validations: "median", "hyperband" or "none".
        storage: database of the trials, as ``sqlite:///FILE``; empty for a file in the folder.
        root: folder of the data set; empty for that of the recipe.
        max_steps: upper bound of the recipe's outer steps; None for no bound.
        keep: keep the checkpoints of all trials.
        progress: print a line for each trial, and the table; False is silent.

    Returns:
        The trials, and the file of the best settings. Trials that diverged, ran out of memory or
        were refused by a check have failed, with the reason in their row.

    Raises:
        CheckpointError: if the folder cannot be written to, its files are damaged, or all
            ``jobs`` were killed.
        ConfigurationError: if a setting is invalid, the folder has another search, Optuna is not
            installed, or every trial failed; the message has the first reason.
        DataError: if the data set cannot be read or is too small for validation tasks.

    Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NIPS 2011; Akiba et al.,
    "Optuna", arXiv 1907.10902.
    """
    request = TuneRequest(
        recipe=Path(recipe) if isinstance(recipe, str) else recipe,
        folder=Path(folder) if isinstance(folder, str) else folder,
        trials=trials,
        search=search,
        space=Path(space) if isinstance(space, str) else space,
        jobs=jobs,
        seed=seed,
        pruner=pruner,
        storage=storage,
        root=root,
        max_steps=max_steps,
        keep=keep,
    )
    return run_search(request, progress=progress)


def run_search(request: TuneRequest, *, progress: bool) -> TuneResult:
    """``tune`` of a request."""
    say = printed if progress else unsaid
    with quiet():
        config, space = read_search(request)
        splits = config.data.load()
        build_sampler(config, splits.train, training=True)
        build_sampler(config, splits.validation, training=False)
        search = Search(request, space)
        _announce(search, say)
        jobs = min(request.jobs, request.trials)
        if jobs > 1:
            interrupted = not _work_by_jobs(request, jobs, progress)
        else:
            with interrupts(say, saves=True) as stop:
                interrupted = not work_on(search, splits, stop, say)
        return _finish(search, interrupted, say)


def _work_by_jobs(request: TuneRequest, jobs: int, progress: bool) -> bool:
    """As ``work_on``; the trial of a job that is killed is left to the others."""
    make = partial(work_of_job, request)
    try:
        list(run_jobs(make, range(jobs), jobs, progress=progress, goes_on=True))
    except KeyboardInterrupt:
        return False
    return True


def _announce(search: Search, say: Callable[[str], None]) -> None:
    settings = search.settings
    say(f"search: {' '.join(str(axis) for axis in search.space.axes)}")
    if search.request.pruner != "none" and settings.validate_every >= settings.steps:
        say(
            f"no trial ends early: its only validation is the last one (train.validate_every is "
            f"{settings.validate_every} of {settings.steps} steps)"
        )
    if not search.request.keep:
        say("checkpoints are kept of the best trial only (--keep keeps all)")


def _finish(search: Search, interrupted: bool, say: Callable[[str], None]) -> TuneResult:
    with turn(search.folder):
        rows = write_results(search)
        if rows:
            draw_search(search.space, search.metric, rows, search.folder / PICTURE)
    result = TuneResult(search.folder / BEST_RECIPE, rows, search.metric, interrupted)
    if rows:
        say(f"\n{table(search, rows)}")
    if best_of(search.metric, rows) is not None:
        say(summary(search, rows))
        say(f"table and picture: {search.folder}/table.md, {PICTURE}; recipe: {result.best}")
    left = [row for row in rows if row.state == "unfinished"]
    count = f"{len(rows) - len(left)} of {search.request.trials} trials have ended"
    if interrupted:
        say(f"{count}: the same command goes on")
    elif len(rows) < search.request.trials or any(search.is_abandoned(r.number) for r in left):
        raise CheckpointError(f"{count}, and workers were killed: the same command goes on")
    elif left:
        say(f"{count}: other workers are at the rest")
    elif best_of(search.metric, rows) is None:
        reason = next(row.reason for row in rows if row.reason)
        raise ConfigurationError(f"all {len(rows)} trials failed; trial {rows[0].number}: {reason}")
    return result
