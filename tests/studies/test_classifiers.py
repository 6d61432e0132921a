"""Classifiers are trained by as many mini-batches as told, whatever the number of rows."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fewshot_blo.studies.images.classifiers import fit_in_batches


@pytest.mark.parametrize(
    ("count", "batch", "updates", "sizes"),
    [
        (5, 2, 3, [2, 2, 1]),
        (5, 2, 5, [2, 2, 1, 2, 2]),  # Into the second pass.
        (5, 2, 2, [2, 2]),  # Less than one pass.
        (3, 200, 4, [3, 3, 3, 3]),
    ],
)
def test_mini_batches(count: int, batch: int, updates: int, sizes: list[int]) -> None:
    seen: list[Tensor] = []

    def loss(v: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        seen.append(rows)
        return (v["w"] - rows.double().mean()).square()

    start = {"w": torch.zeros((), dtype=torch.float64)}
    fit_in_batches(start, loss, count, updates=updates, batch=batch, seed=3)
    assert [len(rows) for rows in seen] == sizes
    a_pass = -(-count // batch)
    if updates >= a_pass:  # A pass sees every row once.
        assert sorted(torch.cat(seen[:a_pass]).tolist()) == list(range(count))


def test_the_start_is_left_alone_and_the_minimum_found() -> None:
    start = {"w": torch.zeros(())}
    v = fit_in_batches(
        start, lambda v, rows: (v["w"] - 1).square(), 4, updates=200, learning_rate=0.1
    )
    assert start["w"] == 0
    assert float(v["w"]) == pytest.approx(1, abs=1e-3)
