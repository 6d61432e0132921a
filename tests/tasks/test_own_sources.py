"""Sources of one's own that get something wrong are told what, and by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError, DivergenceError
from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.heads import RidgeRegressionHead
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.objectives import R2, FunctionMetric, Huber, MeanSquaredError, Metric
from fewshot_blo.problems import Initialization, SharedEncoder
from fewshot_blo.tasks import DataError, TaskBatch, TaskSource
from fewshot_blo.training.running_statistics import update_statistics
from fewshot_blo.training.settings import TrainSettings
from fewshot_blo.training.train import train

STEPS = InnerSteps(1, SGD(0.01))
CLOSED = InnerSteps(0, SGD(0.01))


@dataclass
class Own(TaskSource):
    """Tasks whose targets are their inputs, with changes."""

    rows: tuple[int, ...] = (5,)
    type: torch.dtype = torch.float32
    constant: bool = False
    examples: Tensor | None = None

    @property
    def pool(self) -> Tensor | None:
        return self.examples

    def batch(self, index: int) -> TaskBatch:
        generator = torch.Generator().manual_seed(index)
        rows = self.rows[index % len(self.rows)]
        x = torch.randn(2, rows, 1, generator=generator, dtype=self.type)
        y = x.clone()
        if self.constant:
            y[1] = 0.1
        return TaskBatch(x, x, x, y)


def initialization(**options: Any) -> Initialization:
    return Initialization(nn.Linear(1, 1), loss=MeanSquaredError(), **options)


def trained(folder: Path, validation: TaskSource, metric: Metric) -> object:
    settings = TrainSettings(steps=2, validate_every=1, validation_tasks=4)
    return train(
        initialization(metric=metric),
        Unroll(STEPS),
        Own(),
        validation,
        folder=folder,
        settings=settings,
        adaptation=STEPS,
        progress=False,
    )


def test_batches_of_different_numbers_of_rows() -> None:
    with pytest.raises(DataError, match=r"support_x of batches of Own have shapes \[5, 1\] and"):
        evaluate(initialization(), Own(rows=(5, 6)), tasks=4, adaptation=STEPS)


def test_a_pool_without_embeddings() -> None:
    problem = SharedEncoder(nn.Linear(1, 2), RidgeRegressionHead(), loss=MeanSquaredError())
    with pytest.raises(DataError, match=r"Own has a pool, .* override it"):
        evaluate(problem, Own(examples=torch.zeros(9, 1)), tasks=2, adaptation=CLOSED)


def test_running_statistics_are_of_inputs_as_the_network_gets_them() -> None:
    """A source may have float64 inputs and say nothing of them."""
    encoder = nn.Sequential(nn.BatchNorm1d(1)).double()
    problem = SharedEncoder(encoder, RidgeRegressionHead(), loss=MeanSquaredError())
    source = Own(type=torch.float64)
    update_statistics(problem, source, CLOSED)
    inputs = torch.cat([source.batch(n // 2).support_x[n % 2] for n in range(5)])
    mean = next(problem.network.children()).running_mean
    assert isinstance(mean, Tensor)
    torch.testing.assert_close(mean, inputs.mean(0))


def test_a_metric_that_is_nan_ends_training_at_its_first_validation(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"step 1: R2 is NaN for 2 of 4 .* first for task 1"
    ):
        trained(tmp_path, Own(constant=True), R2())
    assert (tmp_path / "last.pt").exists()


def test_a_metric_that_is_never_finite_has_no_best(tmp_path: Path) -> None:
    def infinite(outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        return torch.full((len(rows),), torch.inf)

    with pytest.raises(DivergenceError, match="infinite was not finite in any validation"):
        trained(tmp_path, Own(), FunctionMetric(infinite))


def test_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="metrics has several called 'huber'"):
        evaluate(initialization(), Own(), tasks=2, metrics=[Huber(1.0), Huber(0.1)])
