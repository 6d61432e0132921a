from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from fewshot_blo.tasks import (
    Augmentation,
    ClassDataset,
    ClassSampler,
    DataError,
    EpisodicSampler,
    MixedSampler,
    TaskBatch,
)
from fewshot_blo.tasks.protocols import Unequal


def dataset(value: int, classes: int = 6, side: int = 2) -> ClassDataset:
    labels = torch.arange(classes).repeat_interleave(9)
    images = torch.full((len(labels), 1, side, side), value, dtype=torch.uint8)
    return ClassDataset(images, labels, tuple(f"c{i}" for i in range(classes)))


def mixed(tasks: int = 4, **settings: Any) -> MixedSampler:
    one = EpisodicSampler(dataset(51), way=2, shot=1, query=3, tasks=7, seed=5)
    other = ClassSampler(dataset(255, classes=8), Unequal(3, (1, 4), 2), tasks=1, seed=5)
    return MixedSampler({"one": one, "other": other}, tasks=tasks, **settings)


def test_each_task_is_that_of_one_sampler() -> None:
    source = mixed(tasks=50)
    batch = source.batch(0)
    assert batch.support_x.shape == (50, 12, 1, 2, 2)
    assert batch.query_x.shape == (50, 6, 1, 2, 2)
    assert batch.classes.shape == (50, 3)
    for task in range(50):
        value = batch.support_x[task].max()
        name, first = ("one", 0) if value < 0.5 else ("other", 6)
        expected = source.samplers[name].between(task, task + 1)
        own = batch.support_y[task] >= 0
        assert (batch.support_x[task][own] == value).all()
        assert batch.support_y[task][own].equal(expected.support_y[expected.support_y >= 0])
        classes = batch.classes[task]
        assert (classes[classes >= 0] - first).equal(expected.classes[0])
        assert all(source.class_names[c].startswith(f"{name}/") for c in classes[classes >= 0])


def test_tasks_depend_on_seed_and_number_alone() -> None:
    single, joint = mixed(tasks=1, seed=2), mixed(tasks=3, seed=2)
    for index in range(3):
        expected = TaskBatch.joined([single.batch(3 * index + t) for t in range(3)])
        found = joint.batch(index)
        assert all(found.flat[name].equal(x) for name, x in expected.flat.items())
    assert joint.between(2, 5).support_y.equal(
        torch.cat([single.batch(n).support_y for n in (2, 3, 4)])
    )


def test_weights() -> None:
    batch = mixed(tasks=2000, weights={"one": 3.0, "other": 1.0}).batch(0)
    share = float((batch.support_x.flatten(1).max(1).values < 0.5).double().mean())
    assert share == pytest.approx(0.75, abs=0.03)
    # The choice of a sampler and the tasks themselves come from different streams.
    first = Counter(batch.classes[:, 0].tolist())
    assert len(first) == 14
    assert (
        "0.75 one (2-way 1-shot 3 queries a class, seed 5); 0.25 other"
        in mixed(weights={"one": 3.0, "other": 1.0}).describe()
    )


def test_plain_leaves_out_augmentation() -> None:
    augmented = EpisodicSampler(
        dataset(51), way=2, shot=1, query=3, tasks=1, augment=Augmentation(brightness=0.9)
    )
    source = MixedSampler({"one": augmented}, tasks=3)
    assert source.plain().batch(0).support_x.unique().tolist() == [pytest.approx(0.2)]
    assert len(source.batch(0).support_x.unique()) > 1
    assert "brightness" in repr(source)


def test_what_cannot_be_mixed() -> None:
    one = EpisodicSampler(dataset(1), way=2, shot=1, query=1, tasks=1)
    large = EpisodicSampler(dataset(1, side=3), way=2, shot=1, query=1, tasks=1)
    with pytest.raises(DataError, match="there is no sampler to mix"):
        MixedSampler({}, tasks=1)
    with pytest.raises(
        DataError, match=r"inputs of large and one differ .* load both with one size"
    ):
        MixedSampler({"one": one, "large": large}, tasks=1)
    with pytest.raises(DataError, match="weights are of two, and samplers are one"):
        MixedSampler({"one": one}, tasks=1, weights={"two": 1.0})
    with pytest.raises(DataError, match="index is -1"):
        MixedSampler({"one": one}, tasks=1).batch(-1)
    with pytest.raises(DataError, match="leave them out"):
        MixedSampler({"one": one}, tasks=1).between(0, 1, torch.zeros(54, 2))


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(54, 4, dtype=torch.int64),
        torch.zeros(54, 4, dtype=torch.bool),
        {"inputs": torch.zeros(54, 4)},
    ],
    ids=["whole numbers", "masks", "by name"],
)
def test_inputs_of_different_types_are_not_mixed(other: Any) -> None:
    """Joined, they would be converted, and only in batches that have tasks of both."""
    labels, names = torch.arange(6).repeat_interleave(9), tuple("abcdef")
    sources = (
        EpisodicSampler(ClassDataset(x, labels, names), way=2, shot=1, query=1, tasks=1)
        for x in (torch.zeros(54, 4), other)
    )
    with pytest.raises(DataError, match="inputs of two and one differ"):
        MixedSampler(dict(zip(("one", "two"), sources, strict=True)), tasks=4)
