"""Padded rows of networks that are undefined at zero input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import assert_same, make_ragged_batch
from torch import Tensor, nn

from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, Backend, InnerSteps
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.problems import Initialization, SharedEncoder
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.step import hypergradient


class UnitLength(nn.Module):
    """Features of unit length, NaN at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(256, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1))
        output: Tensor = self.last(h / h.norm(dim=1, keepdim=True))
        return output


def alone_of(batch: TaskBatch) -> list[TaskBatch]:
    """Each task without padded rows, with as many outputs."""
    tasks = [(slice(t, t + 1), batch.support_rows[t], batch.query_rows[t]) for t in range(3)]
    return [
        TaskBatch(
            batch.support_x[t, support],
            batch.support_y[t, support],
            batch.query_x[t, query],
            batch.query_y[t, query],
            batch.classes[t],
        )
        for t, support, query in tasks
    ]


def gradient(problem: Any, batch: TaskBatch) -> dict[str, Tensor]:
    strategy = Unroll(InnerSteps(2, SGD(0.1)))
    keys = torch.arange(batch.tasks)
    step = hypergradient(problem, strategy, strategy.init(), batch, norm="support", keys=keys)
    return {"F": step.outer_loss, **step.gradient}


@pytest.mark.parametrize("backend", ["auto", "loop", "reference"])
@pytest.mark.parametrize("kind", [Initialization, SharedEncoder])
def test_a_network_undefined_at_zero_equals_tasks_by_themselves(kind: Any, backend: Any) -> None:
    batch = make_ragged_batch()
    problem = kind(UnitLength().double(), backend=backend)
    problem.prepare(batch)
    alone = [gradient(problem, task) for task in alone_of(batch)]
    mean = {name: torch.stack([g[name] for g in alone]).mean(0) for name in alone[0]}
    mean["F"] = torch.cat([g["F"] for g in alone])
    assert_same(gradient(problem, batch), mean, 1e-9)


@pytest.mark.parametrize("backend", ["batched", "loop", "reference"])
@pytest.mark.parametrize("kind", [Initialization, SharedEncoder])
def test_inputs_of_padded_rows_change_no_bit(kind: Any, backend: Backend, monkeypatch: Any) -> None:
    batch = make_ragged_batch()
    network: nn.Module = classifier(Conv4(hidden=4), 4, 3).double()
    problem = kind(network, backend=backend)
    found = gradient(problem, batch)
    for module in ("initialization", "shared_encoder"):
        monkeypatch.setattr(f"fewshot_blo.problems.{module}.repeated", lambda batch: batch)
    for name, expected in gradient(problem, batch).items():
        assert torch.equal(found[name], expected), name
