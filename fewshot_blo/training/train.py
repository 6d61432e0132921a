"""``train``: the outer loop over batches of tasks, with validation, logs and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fewshot_blo.errors import CheckpointError
from fewshot_blo.evaluation.evaluate import ADAPTATION
from fewshot_blo.evaluation.parts import digest
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.machine.chunk import Chunk
from fewshot_blo.machine.processes import joined
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.records.checked import checked
from fewshot_blo.records.locks import writing
from fewshot_blo.records.loggers import Logger
from fewshot_blo.records.loggers.named import built
from fewshot_blo.records.logs import RunLog
from fewshot_blo.records.outer_loop import Taken, take_steps
from fewshot_blo.records.quantity import Quantity
from fewshot_blo.tasks import TaskBatch, TaskSource
from fewshot_blo.training.chunk_choice import choose_chunk
from fewshot_blo.training.exchange import task_to_compute
from fewshot_blo.training.prefetch import Prefetch
from fewshot_blo.training.resumable import NOTHING_KNOWN
from fewshot_blo.training.run import BEST, LAST, Run
from fewshot_blo.training.settings import TrainSettings
from fewshot_blo.training.step_record import Clock, progress_text, record_step
from fewshot_blo.training.validation import restore_best, validate


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run.

    Attributes:
        best: path of the checkpoint with the best validation.
        step: number of outer steps taken.
        metric: what validation measured: accuracy by default.
        validation: its value for the best checkpoint; accuracy is in [0, 1].
        interrupted: whether the run stopped before its last step, and can be resumed.
    """

    best: Path
    step: int
    metric: Quantity
    validation: float
    interrupted: bool

    def __repr__(self) -> str:
        ended = f"interrupted at step {self.step}" if self.interrupted else f"step {self.step}"
        value = self.metric.text(self.validation)
        return f"TrainResult({ended}, best validation {self.metric.name} {value} in {self.best})"


@checked
def train(
    problem: FewShotProblem,
    strategy: Strategy,
    tasks: TaskSource,
    validation: TaskSource,
    *,
    folder: Path | str,
    settings: TrainSettings = TrainSettings(),
    adaptation: InnerSteps = ADAPTATION,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    read_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    origin: Mapping[str, Any] = NOTHING_KNOWN,
    progress: bool = True,
    validated: Callable[[int, Evaluation], None] | None = None,
    loggers: Sequence[Logger] = (),
) -> TrainResult:
    """Trains the outer variables of a problem in place, and leaves them at the best validation.

    Writes ``config.yaml``, ``last.pt``, ``best.pt`` (best validation), a log and
    curves into ``folder``, into which no other process may write meanwhile. Saves after the first
    step, at validations and every ``save_minutes``. An interrupt (Ctrl-C, SIGTERM, or SIGHUP of a
    lost connection) finishes the step, saves and returns. A resumed run continues bit for bit on
    the same device; with a constant learning rate it may have more steps than before.

    Where ``torch.distributed`` has a process group, all of its processes call this with the same
    arguments. Each computes its part of every batch, the first one writes, and the run is that of
    one process up to rounding; it may be resumed by another number of processes.

    Args:
        problem: problem to train.
        strategy: strategy that computes the hypergradients.
        tasks: training tasks; batch i is used in outer step i. Running statistics, for evaluation
            with norm "running", are estimated from their examples.
        validation: tasks from held-out classes.
        folder: folder of the run.
        settings: settings of the outer loop.
        adaptation: inner steps that adapt to a task in validation.
        config: plain data saved in the checkpoints, from which the problem can be rebuilt.
        resume: continue from ``last.pt``.
        read_config: converts a checkpoint's ``config`` to today's form, to resume runs of earlier
            versions.
        origin: what the run is begun from, as plain data that its checkpoints keep: ``starts`` maps
            settings that name files of weights (``start_from``) to digests of these, "" for none,
            and ``data`` maps training and validation to a text and a digest of their data. A run
            is not resumed with other weights or data than those that it was begun from.
        progress: print the choice of chunk and each validation, and show a progress bar, or lines
            where there is no terminal; False is silent.
        validated: called after each validation, when it is logged and saved, with the number of
            outer steps and the result; an exception that it raises ends the run.
        loggers: further loggers beside the folder's log and those of ``settings.loggers``; the
            first process calls them. One that fails is left out with a warning.

    Raises:
        CheckpointError: if the folder holds another run, another process writes to it, there is
            nothing to resume, or a checkpoint cannot be written.
        ConfigurationError: if the strategy does not suit the problem, ``config`` is not plain
            data, a single task does not fit into memory, processes differ in an argument, the
            metric of a validation is NaN, or a logger's package is missing.
        DivergenceError: if a loss or gradient is not finite, and ``last.pt`` then holds an earlier
            step; or if the metric of no validation is finite.
        ProcessError: if another process of the group has failed.
    """
    folder, processes = Path(folder), joined()
    run = Run(
        problem,
        strategy,
        settings,
        folder,
        {"train": asdict(settings), **(config or {})},
        read_config,
        origin,
        processes=processes,
    )
    every: list[Logger] = []
    processes.on_first(lambda: every.extend((*built(settings.loggers), *loggers)))
    first_batch = tasks.batch(0)
    if processes.count > 1:
        processes.check_alike(
            {
                "folders": str(folder),
                "choices of resume": resume,
                "settings": run.config,
                "strategies": strategy,
                "adaptation": adaptation,
                "outer variables": {name: list(p.shape) for name, p in problem.outer.items()},
                "training tasks": _digest(first_batch),
                "validation tasks": _digest(validation.batch(0)),
            }
        )
    with ExitStack() as held:
        processes.on_first(lambda: held.enter_context(writing(folder)))
        if resume:
            run.resume()
        else:
            processes.on_first(lambda: _check_new(folder))
        problem.prepare(first_batch, derivatives=strategy.derivatives)
        run.begin(run.chunk if resume else _chosen_chunk(run, first_batch))
        processes.on_first(run.save_config)
        if not resume or run.step < settings.steps:
            processes.on_first(run.note_provenance)
        problem.network.train()
        loop = _Loop(run, tasks, validation, adaptation, validated, fresh=not resume)
        interrupted = take_steps(
            loop,
            steps=settings.steps,
            folder=folder,
            title="training",
            progress=progress,
            save_minutes=settings.save_minutes,
            processes=processes,
            loggers=every,
            settings=run.config,
        )
        if not interrupted:
            restore_best(run)
        return TrainResult(folder / BEST, run.step, run.metric, run.best["value"], interrupted)


def _digest(batch: TaskBatch) -> str:
    """What tells batches of different tasks apart."""
    return digest(batch.flat)[:12]


def _check_new(folder: Path) -> None:
    if (folder / LAST).exists():
        raise CheckpointError(f"{folder} already holds a run: resume it, or choose another folder")


def _chosen_chunk(run: Run, batch: TaskBatch) -> Chunk:
    """The chunk for this process's part of a batch."""
    settings, processes = run.settings, run.processes
    chunk = choose_chunk(
        run.problem,
        [phase for _, phase in run.whole.phases],
        batch[task_to_compute(processes.part(batch.tasks))],
        norm=settings.norm,
        size=settings.chunk,
        host_limit=settings.memory,
        recorded=run.graphs is not None,
        setting=run.chunk.setting,
    )
    if processes.count > 1:
        chunk.why = f"{processes.count} processes for {batch.tasks} tasks a step; {chunk.why}"
    return chunk


class _Loop:
    """A training run as an ``OuterRun``: takes outer steps, logs and validates."""

    def __init__(
        self,
        run: Run,
        tasks: TaskSource,
        validation: TaskSource,
        adaptation: InnerSteps,
        validated: Callable[[int, Evaluation], None] | None,
        *,
        fresh: bool,
    ) -> None:
        self._run, self._tasks, self._validation = run, tasks, validation
        self._adaptation, self._validated, self._fresh = adaptation, validated, fresh
        device = next(iter(run.problem.outer.values())).device
        self._batches, self._clock = Prefetch(tasks, device), Clock()

    @property
    def step(self) -> int:
        return self._run.step

    @property
    def finished(self) -> bool:
        return self._run.step >= self._run.settings.steps

    def begin(self, log: RunLog | None) -> Taken:
        """Reports the chunk; validates the initial variables if there is no step to take."""
        line = self._run.chunk.why if self._fresh else ""
        if self.finished and self._fresh:
            return Taken(line=f"{line}\n{self._validate(log)}")
        return Taken(line=line)

    def take(self, log: RunLog | None) -> Taken:
        run, settings = self._run, self._run.settings
        batch = self._batches.batch(run.step)
        step = run.hypergradient(batch)
        if run.step + 1 < settings.steps:
            self._batches.ahead(run.step + 1)
        run.check_finite(step)
        self._clock.count(batch.tasks)
        words = line = ""
        is_logged = (run.step + 1) % settings.log_every == 0 or run.step + 1 == settings.steps
        if log is not None and is_logged:
            record = record_step(run, batch, step, self._clock)
            log.write({**record, "seconds": log.seconds()})
            words = progress_text(record, run.metric)
        run.update(step)
        if run.step % settings.validate_every == 0 or run.step == settings.steps:
            line = self._validate(log)
            self._clock = Clock()
        return Taken(words, line, saved=bool(line))

    def _validate(self, log: RunLog | None) -> str:
        run, step = self._run, self._run.step
        result = validate(run, self._tasks, self._validation, self._adaptation, log)
        if self._validated is not None:
            run.processes.on_first(partial(self._validated, step, result))
        return f"step {step}: validation {result}"

    def save_last(self) -> None:
        self._run.save(LAST)
