"""Solves the rows of a study, and resumes interrupted ones."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch

from fewshot_blo.errors import ConfigurationError, DivergenceError, NotSolvedWarning
from fewshot_blo.experiments.components import plain
from fewshot_blo.experiments.settings import SLOTS
from fewshot_blo.hypergrad import Strategy, Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.kernel.stacked.fused import describe_kernels
from fewshot_blo.records.checked import checked
from fewshot_blo.records.json_files import read_json, write_json
from fewshot_blo.records.logs import LOG, read_log
from fewshot_blo.records.provenance import provenance
from fewshot_blo.records.ranges import Counting, Natural, NonNegative, Share
from fewshot_blo.records.tensor_files import write_tensors
from fewshot_blo.solving.driver import FILE, Partial, Solution, solve
from fewshot_blo.solving.falling import falling
from fewshot_blo.studies.products import Passes, count_passes
from fewshot_blo.studies.progress import GRADIENTS, PRODUCTS
from fewshot_blo.studies.study import AS_FOUND, Figures, Study

logger = logging.getLogger(__name__)

FIGURES, OUTER, DIVERGED = "figures.json", "outer.pt", "diverged after steps"


@checked
@dataclass(frozen=True)
class RowSettings:
    """A strategy and the settings of the outer optimisation.

    Attributes:
        strategy: how the hypergradient is computed.
        start: start of each inner problem: cold, warm or partial.
        restart_every: outer steps between cold starts of a partial start; 0 for none.
        keep: weight of the last inner solution in a partial start, in [0, 1].
        steps: number of outer steps.
        passes: gradients and Hessian products that the outer steps may take altogether, in place of
            ``steps``; 0 for no such budget. Rows with the same one are compared at the same cost.
        optimizer: outer optimizer.
        learning_rate: learning rate of the outer optimizer.
        decay: exponent of its decay: it is divided by ``(t + 1)^decay`` at outer step t.
        every: outer steps between records.
        patience: records without a new lowest held-out loss after which the run stops; 0 for no
            early stopping.
    """

    strategy: Strategy = Unroll(InnerSteps(5, SGD(0.5)))
    start: Literal["cold", "warm", "partial"] = "warm"
    restart_every: Natural = 0
    keep: Share = 1.0
    steps: Counting = 500
    passes: Natural = 0
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: NonNegative = 0.1
    decay: NonNegative = 0.0
    every: Counting = 20
    patience: Natural = 0

    def steps_of(self, passes: Passes) -> int:
        """Number of outer steps for the budget, from the passes that one takes.

        Raises:
            ConfigurationError: if the budget is below that of one step.
        """
        if self.passes < sum(passes):
            raise ConfigurationError(
                f"passes is {self.passes}, and one outer step takes {sum(passes)}: name more"
            )
        return self.passes // sum(passes)


def figures_of(
    study: Study, settings: RowSettings | None, place: Path, *, progress: bool = True
) -> dict[str, Figures]:
    """Figures of a row, or of the baselines: those in its folder, or else computed and written.

    Args:
        study: the problem, with its seed.
        settings: settings of the row; None for the baselines.
        place: folder of the row and the seed.
        progress: show the progress of the row; False is silent.

    Raises:
        CheckpointError: if another process writes to the folder, or a file in it is damaged.
        ConfigurationError: if the folder has results of other settings, or settings are invalid.
        KeyboardInterrupt: if it was interrupted; the same call resumes it.
    """
    if settings is None:
        return _known(place, study, None, study.baselines)
    return _known(place, study, settings, partial(_solved, study, settings, place, progress))


def _known(
    place: Path,
    study: Study,
    settings: RowSettings | None,
    compute: Callable[[], Mapping[str, Figures]],
) -> dict[str, Figures]:
    """Figures read from the folder, or else computed and written to it."""
    file, wanted = place / FIGURES, _plain(study, settings)
    begun = place / "settings.json"
    if begun.is_file() and read_json(begun) != wanted:
        raise ConfigurationError(
            f"{place} has results of other settings: choose another folder, or remove it"
        )
    if file.is_file():
        known: dict[str, Figures] = read_json(file)["figures"]
        return known
    write_json(begun, wanted)
    figures = dict(compute())
    cpu = torch.device("cpu")
    origin = provenance(cpu, kernels=describe_kernels(cpu))
    write_json(file, {"figures": figures, "provenance": origin})
    return figures


def _plain(study: Study, settings: RowSettings | None) -> Any:
    row = None if settings is None else plain(SLOTS, settings)
    content = {"study": type(study).__name__, "settings": {**asdict(study), "root": ""}, "row": row}
    return json.loads(json.dumps(content))


def _solved(
    study: Study, settings: RowSettings, place: Path, progress: bool
) -> Mapping[str, Figures]:
    say = partial(print, flush=True) if progress else logger.info
    budget = f"{settings.passes} passes" if settings.passes else f"{settings.steps} outer steps"
    say(f"{place}: {budget}")
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", NotSolvedWarning)
        try:
            solution = solve_row(study, settings, place, progress=progress)
        except DivergenceError as error:
            say(f"{place}: {error}")
            steps = [record["step"] for record in read_log(place / LOG)]
            return {AS_FOUND: {DIVERGED: float(steps[-1] if steps else 0)}}
    for doubt in doubts:
        say(f"{place}: {doubt.message}")
    if solution.interrupted:
        raise KeyboardInterrupt
    write_tensors(dict(solution.outer), place / OUTER, "outer variables")
    seconds = read_log(place / LOG)[-1]["seconds"]
    figures = dict(study.measure(solution.outer, solution.inner))
    passes = count_passes(study.problem(), settings.strategy)
    cost = {
        "outer steps": float(solution.step),
        GRADIENTS: float(passes.gradients),
        PRODUCTS: float(passes.products),
        "seconds": seconds,
    }
    name = next(iter(figures))
    return {**figures, name: {**figures[name], **cost}}


def solve_row(
    study: Study, settings: RowSettings, place: Path, *, progress: bool = True
) -> Solution:
    """Solves the study's problem with the settings of a row; resumes a run in its folder.

    Args:
        study: the study.
        settings: settings of the row.
        place: folder of the row.
        progress: show progress; False is silent.

    Raises:
        ConfigurationError: if the budget of passes is below that of one outer step.
    """
    steps = settings.steps
    if settings.passes:
        steps = settings.steps_of(count_passes(study.problem(), settings.strategy))
    optimizers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
    }

    partly = Partial(settings.restart_every, settings.keep)
    return solve(
        study.problem(),
        settings.strategy,
        falling(partial(optimizers[settings.optimizer], lr=settings.learning_rate), settings.decay),
        steps=steps,
        start=partly if settings.start == "partial" else settings.start,
        constraints=study.constraints(),
        validate=study.held_out(),
        observe=study.observe(),
        patience=settings.patience,
        every=settings.every,
        folder=place,
        resume=(place / FILE).is_file(),
        progress=progress,
    )


def over_seeds(many: Sequence[Figures]) -> dict[str, float]:
    """The mean of each figure, and with several its standard deviation under ``NAME sd``."""
    names = list(dict.fromkeys(name for row in many for name in row))
    record: dict[str, float] = {}
    for name in names:
        values = [row[name] for row in many if name in row]
        record[name] = mean(values)
        if len(values) > 1:
            record[f"{name} sd"] = stdev(values)
    return record
