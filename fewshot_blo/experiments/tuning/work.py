"""The work on a search: reads it, and runs trials until none is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.recipes import names_settings, read_recipe
from fewshot_blo.experiments.settings import Config
from fewshot_blo.experiments.tuning.claims import turn
from fewshot_blo.experiments.tuning.request import TuneRequest
from fewshot_blo.experiments.tuning.results import Row, best_of, worth, write_results, written
from fewshot_blo.experiments.tuning.search import Claim, Search
from fewshot_blo.experiments.tuning.space import Space, make_space, words_of
from fewshot_blo.experiments.tuning.store import quiet
from fewshot_blo.experiments.tuning.trial import run_trial
from fewshot_blo.records.interrupts import interrupts
from fewshot_blo.tasks.split import TaskSplits


def read_search(request: TuneRequest) -> tuple[Config, Space]:
    """The settings of the recipe, and what is searched.

    Raises:
        ConfigurationError: if they cannot be read, or the recipe starts from another recipe.
    """
    config = read_recipe(request.source, request.root, request.max_steps)
    if names_settings(config.start_from):
        raise ConfigurationError(
            f"start_from is the recipe {config.start_from}: train it first, as compare does, and "
            "name its checkpoint in the recipe"
        )
    named = [] if request.space is None else words_of(request.space)
    return config, make_space(config, [*named, *request.search])


def work_on(
    search: Search,
    splits: TaskSplits,
    stop: threading.Event,
    say: Callable[[str], None],
) -> bool:
    """Works on trials until none is left; False if it was stopped before.

    Args:
        search: the search.
        splits: the data set.
        stop: the event of ``interrupts``, within which this is called.
        say: called with a line at the begin and the end of a trial.
    """
    while not stop.is_set():
        claim = search.claim()
        if claim is None:
            return True
        say(f"trial {claim.number}: {_values(claim)}")
        if not run_trial(search, claim, splits):
            return False
        with turn(search.folder):
            rows = write_results(search)
        say(_ended(search, rows, claim.number))
    return False


def _values(claim: Claim) -> str:
    return ", ".join(f"{name} {written(value)}" for name, value in claim.values.items())


def _ended(search: Search, rows: Sequence[Row], number: int) -> str:
    row = next(row for row in rows if row.number == number)
    metric, trials = search.metric, search.request.trials
    best = best_of(metric, rows)
    outcome = {
        "complete": worth(metric, row),
        "pruned": f"pruned after {row.steps} steps at {worth(metric, row)}",
    }.get(row.state, f"failed: {row.reason}")
    so_far = "" if best is None else f"; best {worth(metric, best)} (trial {best.number})"
    return f"trial {number} of {trials}: {outcome}{so_far}"


def work_of_job(request: TuneRequest) -> Callable[[int], None]:
    """For ``run_jobs``: the work of one of several processes, whatever the item."""

    def work(item: int) -> None:
        del item
        with quiet(), interrupts(unsaid, saves=True) as stop:
            config, space = read_search(request)
            work_on(Search(request, space), config.data.load(), stop, printed)

    return work


def printed(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def unsaid(line: str) -> None:
    """Drops a line."""
    del line
