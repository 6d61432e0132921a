from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import normal

from fewshot_blo.networks import GRU
from fewshot_blo.tasks import ClassDataset, DataError, EpisodicSampler
from fewshot_blo.tasks.sequences import padded


def test_token_ids() -> None:
    ids = padded([[3, 1], torch.tensor([4]), [1, 5, 9]])
    assert isinstance(ids, torch.Tensor)
    assert ids.tolist() == [[3, 1, 0], [4, 0, 0], [1, 5, 9]]
    other = padded([[0], [0, 1]], padding=7)
    assert isinstance(other, torch.Tensor)
    assert other.tolist() == [[0, 7], [0, 1]]


def test_series_are_read_without_their_padding() -> None:
    series = [normal(length, 2, seed=length) for length in (3, 5, 1)]
    inputs = padded(series)
    assert isinstance(inputs, dict)
    assert inputs["mask"].sum(1).tolist() == [3, 5, 1]
    network = GRU(shape=(5, 2), width=4).double()
    alone = torch.cat([network(x[None]) for x in series])
    torch.testing.assert_close(network(inputs), alone, rtol=1e-10, atol=1e-12)
    of_one_channel = padded([[0.5, 1.0], [2.0]])
    assert isinstance(of_one_channel, dict)
    assert of_one_channel["x"].tolist() == [[[0.5], [1.0]], [[2.0], [0.0]]]


def test_tasks_of_series() -> None:
    inputs = padded([normal(1 + n % 3, 2, seed=n) for n in range(8)])
    dataset = ClassDataset.from_labels(inputs, torch.arange(8) % 2, ("even", "odd"))
    batch = EpisodicSampler(dataset, way=2, shot=1, query=(1, 2), tasks=3).batch(0)
    assert isinstance(batch.query_x, dict)
    assert batch.query_x["x"].shape == (3, 4, 3, 2)
    assert batch.query_x["mask"].any(-1).equal(batch.query_y >= 0)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "there are no sequences"),
        ([[1], []], r"sequence 1 has shape \[0\]"),
        ([[1], [0.5]], r"sequence 0 is torch\.int64 and sequence 1 torch\.float32"),
        ([[1], [2, 0]], r"sequence 1 is \[2, 0\]: token ids must .* number the tokens from 1"),
        ([[1], [-1]], "at least 0"),
        ([[[0.5]], [[0.5, 1.0]]], "series 0 has 1 channels and series 1 2"),
    ],
)
def test_what_does_not_fit(sequences: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        padded(sequences)
