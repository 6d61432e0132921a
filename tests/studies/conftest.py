"""What tests of several studies share."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fewshot_blo.studies import CleanLabelPoisoning
from fewshot_blo.tasks import ClassDataset, cifarfs
from fewshot_blo.tasks.dataset import Splits


class Colours(nn.Module):
    """Mean and spread of every channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


@pytest.fixture
def clean_label(monkeypatch: pytest.MonkeyPatch) -> CleanLabelPoisoning:
    """On two classes of images that differ in colour, with overlap."""
    shift = torch.tensor([0.0, 25.0, 0.0])[:, None, None]
    noise = torch.randint(40, 160, (80, 3, 32, 32)) + torch.randn(80, 3, 1, 1) * 12
    noise[40:] += shift
    classes = ClassDataset.from_counts(noise.clamp(0, 255).byte(), {"fox": 40, "leopard": 40})
    others = [ClassDataset.from_counts(torch.zeros(1, 3, 32, 32).byte(), {n: 1}) for n in "ab"]
    monkeypatch.setattr(cifarfs, "load", lambda _: Splits(others[0], others[1], classes))
    module: Any = types.ModuleType("own_networks")
    module.net = Colours
    monkeypatch.setitem(sys.modules, "own_networks", module)
    return CleanLabelPoisoning("x", 0, "own_networks:net", size=32, train=30, targets=6, l2=1e-2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rows here are too short to solve their problems, which is told."""
    told = pytest.mark.filterwarnings("ignore::fewshot_blo.errors.NotSolvedWarning")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(told)
