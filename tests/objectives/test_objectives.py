"""Losses and metrics equal PyTorch's, scikit-learn's and torchmetrics' on each task's real rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.objectives import (
    LOSSES,
    METRICS,
    R2,
    Accuracy,
    BinaryCrossEntropy,
    CrossEntropy,
    FunctionMetric,
    Huber,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    Torchmetrics,
    as_metric,
)
from fewshot_blo.objectives.tasks import on_query, on_support
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.tasks.batch import UNKNOWN
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

GENERATOR = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(3, 6, 2, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.rand(3, 6, 2, generator=GENERATOR, dtype=torch.float64)
ROWS = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [False, True] * 3])


def its_module() -> Any:
    """torchmetrics, which imports torchvision."""
    torchvision_module()
    return pytest.importorskip("torchmetrics")


def of_rows(function: object, outputs: Tensor = OUTPUTS, targets: Tensor = TARGETS) -> list[float]:
    """A function of PyTorch or scikit-learn on the real rows of each task."""
    assert callable(function)
    return [float(function(o[r], t[r])) for o, t, r in zip(outputs, targets, ROWS, strict=True)]


@pytest.mark.parametrize(
    ("metric", "function"),
    [
        (MeanSquaredError(), F.mse_loss),
        (MeanAbsoluteError(), F.l1_loss),
        (Huber(0.3), lambda o, t: F.huber_loss(o, t, delta=0.3)),
        (BinaryCrossEntropy(), F.binary_cross_entropy_with_logits),
    ],
    ids=lambda value: type(value).__name__,
)
def test_equal_pytorchs_on_real_rows(metric: Metric, function: object) -> None:
    infinite = OUTPUTS.masked_fill(~ROWS.unsqueeze(2), torch.inf)
    assert metric(infinite, TARGETS, ROWS).tolist() == pytest.approx(of_rows(function), rel=1e-12)
    assert metric.usual_metric is metric
    assert not metric.higher_is_better


def test_r2_equals_scikit_learns() -> None:
    r2_score = pytest.importorskip("sklearn.metrics").r2_score
    outputs, targets = OUTPUTS[..., :1], TARGETS[..., :1]
    found = R2()(outputs, targets, ROWS)
    expected = of_rows(lambda o, t: r2_score(t.numpy(), o.numpy()), outputs, targets)
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    assert R2()(outputs, torch.ones_like(targets), ROWS).isnan().all()


def test_torchmetrics_sees_one_task_at_a_time() -> None:
    torchmetrics = its_module()
    metric = Torchmetrics(torchmetrics.MeanSquaredError())
    found = metric(OUTPUTS, TARGETS, ROWS)
    assert found.tolist() == pytest.approx(of_rows(F.mse_loss), rel=1e-6)
    assert (metric.name, metric.higher_is_better) == ("MeanSquaredError", False)
    f1 = Torchmetrics(torchmetrics.F1Score("multiclass", num_classes=2, average="macro"))
    labels = torch.tensor([[0, 1, 1, 0, 1, UNKNOWN]] * 3)
    assert f1.higher_is_better
    assert f1(OUTPUTS, labels, ROWS).shape == (3,)
    each = Torchmetrics(torchmetrics.F1Score("multiclass", num_classes=2, average=None))
    with pytest.raises(ConfigurationError, match="does not return one number for a task"):
        each(OUTPUTS, labels, ROWS)


def test_torchmetrics_without_a_direction_is_refused() -> None:
    torchmetrics = its_module()
    with pytest.raises(ConfigurationError, match="whether higher values are better"):
        Torchmetrics(torchmetrics.MeanMetric())


def test_rows_of_no_class_count_neither_in_the_loss_nor_in_accuracy() -> None:
    labels = torch.tensor([[0, 1, -1, UNKNOWN]])
    logits = OUTPUTS[:1, :4]
    loss = CrossEntropy()(logits, labels, labels != -1)
    assert float(loss) == pytest.approx(float(F.cross_entropy(logits[0, :2], labels[0, :2])))
    right = (logits[0, :2].argmax(1) == labels[0, :2]).double().mean()
    assert float(Accuracy()(logits, labels, labels != -1)) == float(right)
    assert CrossEntropy().usual_metric == Accuracy()


def test_shapes_that_would_broadcast_are_refused() -> None:
    flat = TARGETS[..., 0]
    for metric in (MeanSquaredError(), MeanAbsoluteError(), Huber(), R2(), BinaryCrossEntropy()):
        with pytest.raises(ConfigurationError, match=r"\[3, 6, 1\].*targets a last dimension, or "):
            metric(OUTPUTS[..., :1], flat, ROWS)
    with pytest.raises(ConfigurationError, match=r"give the network \[2\] outputs a row"):
        MeanSquaredError()(OUTPUTS[..., :1], TARGETS, ROWS)


def test_a_function_of_ones_own() -> None:
    def largest_error(outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        return ((outputs - targets).abs().amax(2) * rows).amax(1)

    metric = as_metric(largest_error)
    assert metric.name == "largest error"
    assert metric(OUTPUTS, TARGETS, ROWS).shape == (3,)
    assert as_metric(metric) is metric
    wrong = FunctionMetric(lambda outputs, targets, rows: outputs.sum())
    with pytest.raises(ConfigurationError, match=r"returns \[\] for 3 tasks"):
        wrong(OUTPUTS, TARGETS, ROWS)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (MeanSquaredError, r"loss is the class MeanSquaredError: give MeanSquaredError\(\)"),
        (torch.nn.MSELoss(), r"loss is torch.nn.MSELoss.*or a function \(outputs, targets, rows\)"),
    ],
)
def test_losses_that_are_none(loss: Any, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        as_metric(loss)


def test_quantities_name_direction_and_unit() -> None:
    names = [kind().quantity.name for kind in METRICS]
    assert len(set(names)) == len(names)
    assert {*LOSSES} < {*METRICS}
    error, accuracy = MeanSquaredError().quantity, Accuracy().quantity
    assert (error.key, error.text(0.123456, 0.0123)) == ("mean_squared_error", "0.1235 ± 0.012")
    assert accuracy.text(0.98765, 0.00123) == "98.77 ± 0.12 %"
    assert error.is_better(0.1, error.worst)
    assert accuracy.is_better(0.1, accuracy.worst)
    assert not error.is_better(float("nan"), error.worst)


def test_tasks_without_classes_are_named_where_labels_are_needed() -> None:
    batch = TaskBatch(OUTPUTS, TARGETS, OUTPUTS, TARGETS, query_rows=ROWS)
    with pytest.raises(ConfigurationError, match="accuracy needs tasks with classes"):
        on_query(Accuracy(), OUTPUTS, batch)
    labels = torch.zeros(3, 6, dtype=torch.int64)
    with pytest.raises(ConfigurationError, match="give TaskBatch the classes of each task"):
        on_query(Accuracy(), OUTPUTS, TaskBatch(OUTPUTS, labels, OUTPUTS, labels))
    found = on_query(MeanSquaredError(), OUTPUTS, batch)
    assert found.tolist() == pytest.approx(of_rows(F.mse_loss), rel=1e-12)


@pytest.mark.parametrize("value", [0.1, 1234.567])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_r2_of_equal_targets_is_nan_however_their_mean_is_rounded(
    value: float, dtype: torch.dtype
) -> None:
    for rows in range(2, 20):
        targets = torch.full((1, rows, 1), value, dtype=dtype)
        real = torch.ones(1, rows, dtype=torch.bool)
        assert R2()(targets + 0.1, targets, real).isnan().all()
        padded = torch.cat([targets, targets - 5], 1)
        mask = torch.cat([real, ~real], 1)
        assert R2()(padded + 0.1, padded, mask).isnan().all()


def test_negative_whole_targets_of_regression_are_numbers_for_torchmetrics() -> None:
    torchmetrics = its_module()
    outputs, targets = torch.zeros(1, 4), torch.tensor([[-3, -1, 0, 2]])
    found = Torchmetrics(torchmetrics.MeanSquaredError())(outputs, targets, targets < 9)
    assert found.tolist() == [(9 + 1 + 0 + 4) / 4]


@pytest.mark.parametrize("kind", [MeanSquaredError, MeanAbsoluteError])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_targets_of_other_types_are_converted(kind: type[Metric], dtype: torch.dtype) -> None:
    outputs, targets = torch.full((1, 3, 1), 0.5), torch.tensor([0, 1, 1]).to(dtype)
    found = kind()(outputs, targets.reshape(1, 3, 1), torch.ones(1, 3, dtype=torch.bool))
    assert found.dtype == torch.float32
    assert found.item() in (0.25, 0.5)


@pytest.mark.parametrize("shape", [(), (3, 1), (3, 6)])
def test_a_class_of_ones_own_must_return_one_number_a_task(shape: tuple[int, ...]) -> None:
    class Own(Metric):
        def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
            return torch.zeros(shape)

    batch = TaskBatch(OUTPUTS, TARGETS, OUTPUTS, TARGETS)
    for of in (on_query, on_support):
        with pytest.raises(ConfigurationError, match=r"own returns .* for 3 tasks"):
            of(Own(), OUTPUTS, batch)
