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
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.kernel.rules import UpdateRule
from fewshot_blo.networks import MLP, classifier
from fewshot_blo.objectives import MeanSquaredError
from fewshot_blo.problems import Initialization
from fewshot_blo.records.tensor_files import LAST
from fewshot_blo.tasks.families import FunctionSampler, Sinusoid
from fewshot_blo.tasks.families.sampler import Split
from fewshot_blo.training.settings import TrainSettings
from fewshot_blo.training.train import train

SHOT, QUERY, TEST_QUERY, TASKS, TEST_TASKS = 10, 10, 50, 25, 600
INNER_STEPS = (0, 1, 2, 3, 5, 7, 9, 12, 16, 20)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        strategy: how the hypergradient is computed.
        adapted: which parameters adapt to a task.
        prox: weight of the proximal term.
        rate: learning rate of the outer optimizer.
        steps: outer steps, about as many as fit into 45 s of the processor.
        tested: rule of the inner steps in validation and test.
    """

    strategy: Strategy
    adapted: str = "all"
    prox: float = 0.0
    rate: float = 0.005
    steps: int = 5000
    tested: UpdateRule = SGD(0.02)


METHODS: Mapping[str, Method] = {
    "MAML": Method(Unroll(InnerSteps(1, SGD(0.02)))),
    "first-order MAML": Method(Unroll(InnerSteps(1, SGD(0.02)), first_order=True)),
    "ANIL": Method(Unroll(InnerSteps(5, SGD(0.02))), "head", steps=4000),
    "implicit, prox": Method(
        Implicit(InnerSteps(16, Adam(0.03)), ConjugateGradient(5, damping=0.1)),
        prox=2.0,
        steps=1500,
        tested=Adam(0.03),
    ),
    "penalty, prox": Method(
        Penalty(InnerSteps(20, Adam(0.05)), rho=0.03),
        prox=2.0,
        rate=0.01,
        steps=600,
        tested=Adam(0.03),
    ),
}


@dataclass(frozen=True)
class Errors:
    """Mean squared errors of a method on test tasks.

    Attributes:
        name: of the method.
        means, intervals: error after each number of inner steps, and half of its 95 % interval.
        steps: outer steps.
        seconds: of the processor, for training with its validations.
    """

    name: str
    means: Sequence[float]
    intervals: Sequence[float]
    steps: int
    seconds: float


def measured(share: float, seed: int, folder: Path) -> Callable[[str], Errors]:
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
        steps, rule = max(round(share * method.steps), 1), method.tested
        start, run = time.process_time(), folder / name.replace(", ", "-").replace(" ", "-")
        train(
            problem,
            method.strategy,
            sampler("train", QUERY),
            sampler("validation", TEST_QUERY),
            folder=run,
            resume=(run / LAST).exists(),
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
            adaptation=InnerSteps(9, rule),
            progress=False,
        )
        seconds, found = time.process_time() - start, []
        for count in INNER_STEPS:
            adaptation = InnerSteps(count, rule)
            test = sampler("test", TEST_QUERY)
            found.append(
                evaluate(problem, test, tasks=TEST_TASKS, norm="support", adaptation=adaptation)
            )
        means, intervals = [e.mean for e in found], [e.interval for e in found]
        return Errors(name, means, intervals, steps, seconds)

    return measure
