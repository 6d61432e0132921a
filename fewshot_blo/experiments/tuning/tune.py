"""``tune``: searches settings of a recipe by their accuracy on its validation tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.data import build_sampler
from fewshot_blo.experiments.recipes import names_settings, read_recipe
from fewshot_blo.experiments.settings import Config
from fewshot_blo.experiments.tuning.claims import turn
from fewshot_blo.experiments.tuning.picture import draw_search
from fewshot_blo.experiments.tuning.request import Pruner, TuneRequest
from fewshot_blo.experiments.tuning.results import (
    BEST_RECIPE,
    PICTURE,
    Row,
    best_of,
    percent,
    summary,
    table,
    write_results,
    written,
)
from fewshot_blo.experiments.tuning.search import Claim, Search
from fewshot_blo.experiments.tuning.space import make_space, words_of
from fewshot_blo.experiments.tuning.store import quiet
from fewshot_blo.experiments.tuning.trial import run_trial
from fewshot_blo.experiments.tuning.workers import run_workers, shares
from fewshot_blo.records.interrupts import interrupts
from fewshot_blo.tasks import Splits


@dataclass(frozen=True)
class TuneResult:
    """What a search found.

    Attributes:
        best: the best settings as a recipe, ``<folder>/best.yaml``.
        rows: all trials.
        interrupted: whether it stopped before its last trial; the same call goes on.
    """

    best: Path
    rows: Sequence[Row]
    interrupted: bool

    def __repr__(self) -> str:
        best = best_of(self.rows)
        found = f"trial {best.number}, {percent(best)}" if best else "no trial is complete"
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
    set, and else up to rounding. With ``jobs`` above 1, call it under
    ``if __name__ == "__main__":``, as ``multiprocessing`` needs.

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
        jobs: number of processes, which divide the cores and the memory of this machine.
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
        CheckpointError: if the folder cannot be written to, or its files are damaged.
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
    say = _printed if progress else _unsaid
    with quiet():
        config = _recipe(request)
        space = make_space(config, _words(request))
        _check_jobs(request.jobs)
        splits = config.data.load()
        build_sampler(config, splits.train, training=True)
        build_sampler(config, splits.validation, training=False)
        search = Search(request, space)
        _announce(search, say)
        jobs = min(request.jobs, request.trials)
        if jobs > 1:
            work = _report_work if progress else _silent_work
            interrupted = run_workers(work, request, shares(config, jobs), say)
        else:
            with interrupts(say, saves=True) as stop:
                interrupted = not _work(search, splits, "", stop.is_set, say)
        return _finish(search, interrupted, say)


def _recipe(request: TuneRequest) -> Config:
    config = read_recipe(request.source, request.root, request.max_steps)
    if names_settings(config.start_from):
        raise ConfigurationError(
            f"start_from is the recipe {config.start_from}: train it first, as compare does, and "
            "name its checkpoint in the recipe"
        )
    return config


def _words(request: TuneRequest) -> list[str]:
    named = [] if request.space is None else words_of(request.space)
    return [*named, *request.search]


def _check_jobs(jobs: int) -> None:
    cores = len(os.sched_getaffinity(0))
    if jobs > cores:
        raise ConfigurationError(
            f"jobs is {jobs}, and this process may use {cores} cores: set it to at most {cores}"
        )


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


def _work(
    search: Search,
    splits: Splits,
    device: str,
    stopped: Callable[[], bool],
    say: Callable[[str], None],
) -> bool:
    """Works on trials until none is left; False if it was stopped before."""
    while not stopped():
        claim = search.claim()
        if claim is None:
            return True
        say(f"trial {claim.number}: {_values(claim)}")
        if not run_trial(search, claim, splits, device, stopped):
            return False
        with turn(search.folder):
            rows = write_results(search)
        say(_ended(rows, claim.number, search.request.trials))
    return False


def _values(claim: Claim) -> str:
    return ", ".join(f"{name} {written(value)}" for name, value in claim.values.items())


def _ended(rows: Sequence[Row], number: int, trials: int) -> str:
    row = next(row for row in rows if row.number == number)
    best = best_of(rows)
    outcome = {
        "complete": percent(row),
        "pruned": f"pruned after {row.steps} steps at {percent(row)}",
    }.get(row.state, f"failed: {row.reason}")
    so_far = "" if best is None else f"; best {percent(best)} (trial {best.number})"
    return f"trial {number} of {trials}: {outcome}{so_far}"


def _report_work(request: TuneRequest, device: str, stopped: Callable[[], bool]) -> None:
    _work_alone(request, device, stopped, _printed)


def _silent_work(request: TuneRequest, device: str, stopped: Callable[[], bool]) -> None:
    _work_alone(request, device, stopped, _unsaid)


def _work_alone(
    request: TuneRequest, device: str, stopped: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """The work of one of several processes, which reads recipe and data by itself."""
    with quiet():
        config = _recipe(request)
        search = Search(request, make_space(config, _words(request)))
        _work(search, config.data.load(), device, stopped, say)


def _finish(search: Search, interrupted: bool, say: Callable[[str], None]) -> TuneResult:
    with turn(search.folder):
        rows = write_results(search)
        if rows:
            draw_search(search.space, rows, search.folder / PICTURE)
    ended = sum(row.state != "running" for row in rows)
    unfinished = interrupted or ended < search.request.trials
    result = TuneResult(search.folder / BEST_RECIPE, rows, unfinished)
    if rows:
        say(f"\n{table(search, rows)}")
    if best_of(rows) is not None:
        say(summary(search, rows))
        say(f"table and picture: {search.folder}/table.md, {PICTURE}; recipe: {result.best}")
    if unfinished:
        others = "" if interrupted else ", or other workers are at the rest"
        count = f"{ended} of {search.request.trials} trials have ended"
        say(f"{count}: the same command goes on{others}")
    elif best_of(rows) is None:
        reason = next(row.reason for row in rows if row.reason)
        raise ConfigurationError(f"all {len(rows)} trials failed; trial {rows[0].number}: {reason}")
    return result


def _printed(line: str) -> None:
    print(line, flush=True)


def _unsaid(line: str) -> None:
    del line
