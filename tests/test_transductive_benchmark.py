"""The benchmark of transductive heads draws the tasks that it says it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewshot_blo.heads import CosineHead
from fewshot_blo.tasks import ClassDataset

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import transductive

    return transductive


def dataset() -> ClassDataset:
    """Eight classes of 100 images whose pixel is their class."""
    labels = torch.arange(8).repeat_interleave(100)
    images = labels.to(torch.uint8).reshape(-1, 1, 1, 1)
    return ClassDataset(images, labels, tuple("abcdefgh"))


def test_both_kinds_of_queries_have_the_same_support_sets(benchmark: Any) -> None:
    drawn = benchmark.drawn(dataset(), 5, 4)
    balanced, other = (drawn[kind] for kind in benchmark.KINDS)
    assert torch.equal(balanced.support, other.support)
    for tasks in (balanced, other):
        assert tasks.query.shape == tasks.labels.shape == (4, 75)
        classes = dataset().labels[tasks.support].unflatten(1, (5, 5))
        assert (classes == classes[..., :1]).all()
        of_queries = dataset().labels[tasks.query]
        assert torch.equal(classes[..., 0].gather(1, tasks.labels), of_queries)
        for support, query in zip(tasks.support.tolist(), tasks.query.tolist(), strict=True):
            assert len({*support, *query}) == 100
    assert all((labels.bincount(minlength=5) == 15).all() for labels in balanced.labels)
    assert not all((labels.bincount(minlength=5) == 15).all() for labels in other.labels)
    features = torch.eye(8)[dataset().labels]
    assert (benchmark.accuracies(CosineHead(), features, other) == 1).all()


def test_numbers_of_queries_follow_the_distribution(benchmark: Any) -> None:
    rng = np.random.default_rng(0)
    counts = np.array([benchmark.query_counts(rng) for _ in range(4000)])
    assert (counts.sum(1) == 75).all()
    share = counts / 75
    # A component of Dirichlet(2, 2, 2, 2, 2) is Beta(2, 8).
    np.testing.assert_allclose(share.mean(0), 0.2, atol=0.007)
    np.testing.assert_allclose(share.std(0), (2 * 8 / 10**2 / 11) ** 0.5, atol=0.006)
