"""Runs one trial: trains its settings, reports validations, and records how it ended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.errors import ConfigurationError, DivergenceError, StructuralZeroError
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.experiments.training import train_from_config
from fewshot_blo.experiments.tuning.search import Claim, Search
from fewshot_blo.machine.memory import is_out_of_memory, release_memory
from fewshot_blo.records.logs import LOG, read_log
from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.split import TaskSplits
from fewshot_blo.training.run import LAST

_OF_SETTINGS = (ConfigurationError, DataError, DivergenceError, StructuralZeroError)


class _Pruned(Exception):
    """The pruner ends the trial."""


def run_trial(search: Search, claim: Claim, splits: TaskSplits) -> bool:
    """Trains a trial's settings, or goes on with them where they were left.

    Args:
        search: the search.
        claim: the trial.
        splits: the data set; its test classes are not used.

    Returns:
        Whether it has ended; False if it was interrupted, and can go on.
    """
    try:
        return _train(search, claim, splits)
    except _Pruned:
        search.end(claim, "PRUNED", None, **_figures(search, claim.folder))
    except Exception as error:
        exhausted = is_out_of_memory(error)
        if not isinstance(error, _OF_SETTINGS) and not exhausted:
            raise
        reason = str(error).partition("\n")[0] or "the memory is full"
        search.end(claim, "FAIL", None, reason=reason, **_figures(search, claim.folder))
        if exhausted:  # What is left of the run would be missing in the next one.
            release_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    finally:
        claim.lock.close()
    return True


def _train(search: Search, claim: Claim, splits: TaskSplits) -> bool:
    config = search.space.config(claim.values)

    def validated(step: int, result: Evaluation) -> None:
        if step not in claim.reported:
            claim.trial.report(result.mean, step)
        # The recipe is what all are compared with.
        if step < config.train.steps and claim.number and claim.trial.should_prune():
            raise _Pruned

    result = train_from_config(
        config,
        splits,
        claim.folder,
        resume=(claim.folder / LAST).exists(),
        tested=False,
        progress=False,
        validated=validated,
    )
    if result.interrupted:
        search.leave(claim)
        return False
    search.end(claim, "COMPLETE", result.validation, **_figures(search, claim.folder))
    return True


def _figures(search: Search, run: Path) -> dict[str, Any]:
    """Of the best validation so far, with its interval, and the steps and seconds taken."""
    records, metric = read_log(run / LOG), search.metric
    name = f"{metric.key}/validation"
    best = max(
        (record for record in records if name in record),
        key=lambda record: metric.rank(float(record[name])),
        default={},
    )
    figures = {
        "validation": best.get(name),
        "interval": best.get(f"{name}_interval"),
        "steps": records[-1]["step"] if records else 0,
        "seconds": max((record.get("seconds", 0.0) for record in records), default=0.0),
    }
    # A database has no NaN, as of the interval of one task.
    return {n: x for n, x in figures.items() if x is not None and not math.isnan(x)}
