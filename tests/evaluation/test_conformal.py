from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import make_dataset, make_sampler

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.conformal import across_tasks, conformal, within_task
from fewshot_blo.evaluation.evaluate import adapted
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.networks import Conv4
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.tasks import ClassSampler
from fewshot_blo.tasks.protocols import Episodic

DATASET = make_dataset(7, 12, noise=150)
ADAPTATION = InnerSteps(2, SGD(0.2))


def test_coverage_within_a_task_is_exact() -> None:
    """19 of 20 equally likely places of a test score among 19 others are covered."""
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.random((3000, 20)))
    covered = [float(own[19]) <= within_task(own[:19], 0.95) for own in scores]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert within_task(scores[0][:18], 0.95) == math.inf
    assert within_task(torch.tensor([3.0, 1.0, 2.0]), 0.5) == 2


def test_coverage_across_tasks_of_unequal_difficulty() -> None:
    """Pooled queries of a task depend on each other; the weights of tasks allow for it."""
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        tasks = [rng.random() + 0.1 * rng.random(rng.integers(1, 12)) for _ in range(40)]
        limit = across_tasks([torch.from_numpy(own) for own in tasks[:39]], 0.9)
        covered.append(np.mean(tasks[39] <= limit))
    assert 0.9 - 0.03 < np.mean(covered) < 0.9 + 1 / 40 + 0.03


def test_threshold_across_tasks() -> None:
    tasks = [torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.tensor([4.0, 5.0, 6.0])]
    # Weights of 4: 1/2, 1/2, 1, 1/3, 1/3, 1/3 and 1 for infinity.
    for level, expected in ((0.1, 1), (0.25, 2), (0.5, 3), (0.6, 5), (0.75, 6), (0.76, math.inf)):
        assert across_tasks(tasks, level) == expected


def problem() -> SharedEncoder:
    torch.manual_seed(0)
    return SharedEncoder(Conv4(hidden=8).double(), backend="loop")


def sampler(**changes: Any) -> ClassSampler:
    sizes: dict[str, Any] = {"query": 6, "tasks": 2, "dtype": torch.float64, "seed": 3}
    return make_sampler(DATASET, **(sizes | changes))


def by_loop(own: SharedEncoder, source: ClassSampler, numbers: range) -> list[Any]:
    """Scores of all classes and labels of each task."""
    own.network.eval()
    found = []
    for number in numbers:
        batch = source.between(number, number + 1)
        with torch.no_grad():
            logits = adapted(own, batch, "transductive", ADAPTATION)()[0]
        found.append(((1 - logits.softmax(-1)).numpy(), batch.query_y[0].numpy()))
    return found


def test_sets_within_tasks() -> None:
    found = conformal(
        problem(), sampler(), tasks=5, level=0.8, labelled=9, adaptation=ADAPTATION, chunk=2
    )
    for number, (scores, labels) in enumerate(by_loop(problem(), sampler(), range(5))):
        order = np.random.default_rng((0, number)).permutation(18)
        own = scores[np.arange(18), labels]
        limit = sorted(own[order[:9]])[7]  # ceil(10 * 0.8) = 8
        test = order[9:]
        assert float(found.coverage[number]) == pytest.approx((own[test] <= limit).mean())
        assert float(found.size[number]) == pytest.approx((scores[test] <= limit).sum(1).mean())
    assert str(found).startswith("80 % sets: coverage ")
    assert str(found).endswith("classes (5 tasks, 9 labelled queries a task)")


@pytest.mark.parametrize("apart", [False, True])
def test_sets_across_tasks(apart: bool) -> None:
    others = sampler(seed=9) if apart else None
    found = conformal(
        problem(),
        sampler(),
        tasks=4,
        level=0.6,
        calibration=others,
        calibration_tasks=3,
        adaptation=ADAPTATION,
    )
    numbers = range(3) if apart else range(4, 7)
    known = by_loop(problem(), others or sampler(), numbers)
    own = [torch.from_numpy(scores[np.arange(18), labels]) for scores, labels in known]
    limit = across_tasks(own, 0.6)
    for number, (scores, labels) in enumerate(by_loop(problem(), sampler(), range(4))):
        covered = scores[np.arange(18), labels] <= limit
        assert float(found.coverage[number]) == pytest.approx(covered.mean())
        assert float(found.size[number]) == pytest.approx((scores <= limit).sum(1).mean())


def test_padded_classes_and_rows_are_left_out() -> None:
    source = ClassSampler(DATASET, Episodic((2, 4), 1, (3, 6)), tasks=2, dtype=torch.float64)
    found = conformal(problem(), source, tasks=8, labelled=3, level=0.95, adaptation=ADAPTATION)
    # With so few labels a set is all classes, and the task has 2 to 4 of them.
    assert found.coverage.tolist() == [1] * 8
    assert set(found.size.tolist()) <= {2, 3, 4}
    assert len(set(found.size.tolist())) > 1


def test_what_cannot_be_calibrated() -> None:
    with pytest.raises(ConfigurationError, match="labelled is 18, and task 0 has 18 queries"):
        conformal(problem(), sampler(), tasks=2, labelled=18, adaptation=ADAPTATION)
    with pytest.raises(ConfigurationError, match="leave the embeddings out"):
        conformal(problem(), sampler(), calibration=sampler(), embeddings=torch.zeros(84, 8))
