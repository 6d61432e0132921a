"""Outer steps of a group of processes against those of one process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from every_strategy import STRATEGIES
from oracles import make_batch, make_ragged_batch
from test_contract import cases_with_modes, fit, make_problem
from torch import Tensor

from fewshot_blo.errors import ConfigurationError, StructuralZeroError
from fewshot_blo.machine.processes import ALONE, Processes
from fewshot_blo.problems import NormMode
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.exchange import gathered_state
from fewshot_blo.training.run import Run
from fewshot_blo.training.settings import TrainSettings

STEPS = 2


Start = Literal["cold", "warm"]


class Case(NamedTuple):
    """A strategy and a problem of the contract suite, and how tasks are classified and begun."""

    strategy: str
    problem: str
    mode: NormMode
    start: Start


def every_case() -> list[Case]:
    """Cases of the contract suite, cold and warm, whether or not they can be trained so."""
    starts: tuple[Start, ...] = ("cold", "warm")
    return [Case(*case, start) for case in cases_with_modes() for start in starts]


def sample() -> list[Case]:
    """One case a strategy, of different problems."""
    found: list[Case] = []
    for number, strategy in enumerate(STRATEGIES):
        own = [case for case in every_case() if case.strategy == strategy]
        found.append(own[5 * number % len(own)])
    return found


def batches(tasks: int) -> list[TaskBatch]:
    """A batch for each outer step; every second one of three is padded."""
    made = [make_batch(tasks, seed=seed) for seed in range(STEPS)]
    return [made[0], make_ragged_batch(), *made[2:]] if tasks == 3 else made


def take(case: Case, drawn: Sequence[TaskBatch], processes: Processes) -> dict[str, Tensor]:
    """Takes outer steps; everything that a run keeps of them.

    Raises:
        ConfigurationError: if the case cannot be trained.
        StructuralZeroError: likewise.
    """
    tasks = max(batch.tasks for batch in drawn)
    problem, _ = make_problem(case.problem, "batch")
    problem.backend = "batched"
    settings = TrainSettings(
        steps=STEPS, start=case.start, optimizer="sgd", momentum=0.0, clip=0.0, norm=case.mode
    )
    method = fit(STRATEGIES[case.strategy], case.problem)
    run = Run(problem, method, settings, Path(), {}, processes=processes)
    run.chunk = replace(run.chunk, size=tasks)
    kept: dict[str, Tensor] = {}
    for number, batch in enumerate(drawn):
        step = run.hypergradient(batch)
        kept |= {f"gradient {number}/{name}": g for name, g in step.gradient.items()}
        kept |= {f"F {number}": step.outer_loss, f"G {number}": step.inner_loss}
        run.update(step)
    kept |= {f"outer/{name}": p.detach() for name, p in problem.outer.items()}
    for name, part in gathered_state(run.state, processes).plain().items():
        named = {"": part} if isinstance(part, Tensor) else part
        kept |= {f"state {name}/{own}": x for own, x in named.items()}
    return kept


def error(ours: dict[str, Tensor], alone: dict[str, Tensor]) -> float:
    """The largest difference relative to the largest entry of its kind."""
    assert list(ours) == list(alone)
    kinds = [name.split("/")[0] for name in alone]
    scale = {
        kind: max(float(x.abs().max()) for n, x in alone.items() if n.split("/")[0] == kind)
        for kind in kinds
    }
    return max(
        float((ours[name] - x).abs().max()) / (scale[kind] or 1)
        for (name, x), kind in zip(alone.items(), kinds, strict=True)
    )


def errors(tasks: Sequence[int], found: Sequence[Case], processes: Processes) -> dict[str, float]:
    """Relative errors of the group against one process, by case; without what cannot be trained.

    Args:
        tasks: numbers of tasks of a batch.
        found: the cases.
        processes: the group.
    """
    measured = {}
    for count, case in itertools.product(tasks, found):
        drawn = batches(count)
        try:
            alone = take(case, drawn, ALONE)
        except (ConfigurationError, StructuralZeroError):
            continue
        measured[f"{count}; {'; '.join(case)}"] = error(take(case, drawn, processes), alone)
    return measured
