"""The calibration error beside that of torchmetrics."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from fewshot_blo.evaluation.counts import Tally
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module


@pytest.fixture(scope="module")
def metrics() -> ModuleType:
    torchvision_module()  # torchmetrics imports torchvision, which may need operators declared.
    module: ModuleType = pytest.importorskip("torchmetrics.functional.classification")
    return module


def ragged(generator: torch.Generator) -> tuple[Tensor, TaskBatch]:
    """Logits and tasks of 3 and 5 ways; a third of the queries is padding."""
    ways = torch.tensor([3, 5, 5, 3])
    classes = torch.arange(5).masked_fill(torch.arange(5) >= ways[:, None], -1)
    labels = (torch.rand(4, 60, generator=generator) * ways[:, None]).long()
    labels = labels.masked_fill(torch.rand(4, 60, generator=generator) < 0.3, -1)
    logits = 2 * torch.randn(4, 60, 5, generator=generator, dtype=torch.float64)
    empty = torch.zeros(4, 60, 1)
    return logits, TaskBatch(empty, labels, empty, labels, classes)


def test_calibration_error_is_that_of_torchmetrics(metrics: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    tally, parts = Tally(torch.device("cpu")), [ragged(generator) for _ in range(3)]
    for logits, batch in parts:
        tally.add(logits, batch)
    padded = torch.stack([batch.classes < 0 for _, batch in parts]).unsqueeze(2)
    logits = torch.stack([logits for logits, _ in parts]).masked_fill(padded, -torch.inf)
    labels = torch.stack([batch.query_y for _, batch in parts])
    expected = metrics.multiclass_calibration_error(
        logits.softmax(-1).flatten(0, 2), labels.flatten(), 5, n_bins=15, ignore_index=-1
    )
    # torchmetrics computes in float32.
    assert tally.counts().calibration_error() == pytest.approx(float(expected), rel=1e-6)


def test_certain_queries_are_in_the_last_interval() -> None:
    """Guo et al. close it at 1; torchmetrics gives a confidence of exactly 1 an interval more."""
    sure = torch.tensor(0.95, dtype=torch.float64)
    logits = torch.stack(
        [torch.stack([(sure / (1 - sure)).log(), sure * 0]), torch.tensor([99, 0.0])]
    )
    labels, empty = torch.tensor([[0, 1]]), torch.zeros(1, 2, 1)
    tally = Tally(torch.device("cpu"))
    tally.add(logits[None], TaskBatch(empty, labels, empty, labels, torch.tensor([[0, 1]])))
    assert tally.counts().calibration_error() == pytest.approx((0.95 + 1 - 1) / 2)
