"""The methods of ``sinusoid.py``, and how each is trained and tested."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.networks import MLP, classifier
from fewshot_blo.objectives import MeanSquaredError
from fewshot_blo.problems import Initialization
from fewshot_blo.tasks.families import FunctionSampler, Sinusoid
from fewshot_blo.tasks.families.sampler import Split
from fewshot_blo.training.settings import TrainSettings
from fewshot_blo.training.train import train

SHOT, QUERY, TEST_QUERY, TASKS, TEST_TASKS = 10, 10, 50, 25, 600
INNER_STEPS = range(11)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        strategy: how the hypergradient is computed.
        adapted: which parameters adapt to a task.
        prox: weight of the proximal term.
        rate: learning rate of the outer optimizer.
        validated: inner steps of validation.
    """

    strategy: Strategy
    adapted: str = "all"
    prox: float = 0.0
    rate: float = 0.005
    validated: int = 5


METHODS: Mapping[str, Method] = {
    "MAML": Method(Unroll(InnerSteps(1, SGD(0.02)))),
    "first-order MAML": Method(Unroll(InnerSteps(1, SGD(0.02)), first_order=True)),
    "ANIL": Method(Unroll(InnerSteps(1, SGD(0.05))), "head"),
    "implicit, prox": Method(
        Implicit(InnerSteps(10, SGD(0.01)), ConjugateGradient(5, damping=1.0)), prox=0.5
    ),
    "penalty, prox": Method(Penalty(InnerSteps(10, SGD(0.01))), prox=0.5),
}


@dataclass(frozen=True)
class Errors:
    """Mean squared errors of a method on test tasks.

    Attributes:
        name: of the method.
        means, intervals: error after each number of inner steps, and half of its 95 % interval.
        seconds: of the processor, for training with its validations.
    """

    name: str
    means: Sequence[float]
    intervals: Sequence[float]
    seconds: float


def measured(steps: int, seed: int, folder: Path) -> Callable[[str], Errors]:
    """Trains and tests a method by name."""

    def sampler(split: Split, query: int) -> FunctionSampler:
        return FunctionSampler(
            Sinusoid(), shot=SHOT, query=query, tasks=TASKS, seed=seed, split=split
        )

    def measure(name: str) -> Errors:
        method = METHODS[name]
        torch.manual_seed(seed)
        problem = Initialization(
            classifier(MLP(), 40, 1),
            loss=MeanSquaredError(),
            prox=method.prox,
            adapted=method.adapted,
        )
        inner = method.strategy.inner
        start = time.process_time()
        train(
            problem,
            method.strategy,
            sampler("train", QUERY),
            sampler("validation", TEST_QUERY),
            folder=folder / name.replace(", ", "-").replace(" ", "-"),
            settings=TrainSettings(
                steps=steps,
                learning_rate=method.rate,
                schedule="cosine",
                clip=10.0,
                norm="support",
                validate_every=max(steps // 10, 1),
                log_every=max(steps // 100, 1),
                seed=seed,
            ),
            adaptation=InnerSteps(method.validated, inner.rule),
            progress=False,
        )
        seconds, found = time.process_time() - start, []
        for count in INNER_STEPS:
            adaptation = InnerSteps(count, inner.rule)
            test = sampler("test", TEST_QUERY)
            found.append(
                evaluate(problem, test, tasks=TEST_TASKS, norm="support", adaptation=adaptation)
            )
        return Errors(name, [e.mean for e in found], [e.interval for e in found], seconds)

    return measure
