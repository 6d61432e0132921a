"""Validation of a run: a metric on held-out tasks, the best checkpoint, and its restoration."""

from __future__ import annotations

import math

from fewshot_blo.errors import CheckpointError, ConfigurationError, DivergenceError
from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.evaluation.parts import merge
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.records.logs import RunLog
from fewshot_blo.records.shard import by_all
from fewshot_blo.tasks import TaskSource
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.checkpoint import Checkpoint
from fewshot_blo.training.run import BEST, LAST, Run
from fewshot_blo.training.running_statistics import update_statistics


def validate(
    run: Run,
    tasks: TaskSource,
    validation: TaskSource,
    adaptation: InnerSteps,
    log: RunLog | None,
) -> Evaluation:
    """Measures and logs the metric on validation tasks, and saves checkpoints.

    Args:
        run: the run; each of its processes evaluates a part of the validation tasks.
        tasks: training tasks, of whose inputs running statistics are estimated.
        validation: validation tasks.
        adaptation: inner steps that adapt to a task.
        log: log of the run, in the process that writes it.

    Raises:
        ConfigurationError: if the metric is NaN.
    """
    with run.average.applied(run.problem.outer):
        update_statistics(run.problem, tasks, adaptation)
        result = by_all(
            run.processes,
            run.settings.validation_tasks,
            lambda shard: evaluate(
                run.problem,
                validation,
                tasks=run.settings.validation_tasks,
                norm=run.settings.norm,
                adaptation=adaptation,
                shard=shard,
            ),
            merge,
        )
        if run.metric.is_better(result.mean, run.best["value"]):
            run.best = {"step": run.step, "value": result.mean}
            run.save(BEST)
    if math.isnan(result.mean):
        run.save(LAST)
        missing = result.values.isnan()
        raise ConfigurationError(
            f"step {run.step}: {run.metric.name} is NaN for {int(missing.sum())} of "
            f"{len(missing)} validation tasks, first for task {int(missing.int().argmax())}, "
            "and variables cannot be chosen by it: each task needs query rows, and R2 needs "
            "targets that differ; change the validation tasks, or the metric"
        )
    if log is not None:
        log.write(
            {
                "step": run.step,
                f"{run.metric.key}/validation": result.mean,
                f"{run.metric.key}/validation_interval": result.interval,
                "seconds": log.seconds(),
            }
        )
    run.save(LAST)
    return result


def restore_best(run: Run) -> None:
    """Sets the outer variables and buffers to those of the best validation.

    Raises:
        CheckpointError: if its checkpoint was removed.
        DivergenceError: if no validation was finite.
    """
    if run.best["value"] == run.metric.worst:
        raise DivergenceError(
            f"{run.metric.name} was not finite in any validation, so there are no best variables: "
            f"lower the learning rate or the steps of adaptation; {run.folder / LAST} has the "
            f"variables of step {run.step}"
        )
    best = run.folder / BEST

    def load() -> Checkpoint:
        if not best.exists():
            raise CheckpointError(
                f"{best} of step {run.best['step']} was removed during the run; "
                f"{run.folder / LAST} has the variables of step {run.step}"
            )
        return checkpoints.load(best)

    run.processes.from_first(load).restore(run.problem)
