from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import (
    Augmentation,
    ClassDataset,
    DataError,
    EpisodicSampler,
    TaskBatch,
    TaskSource,
)

CLASSES = 7
COUNTS = [9, 12, 10, 9, 15, 11, 9]


def make() -> ClassDataset:
    """Image ``i`` (from 1) holds its number and its class."""
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(COUNTS))
    numbers = torch.arange(1, len(labels) + 1)
    images = torch.stack([numbers, labels], dim=1).to(torch.uint8)[:, :, None, None]
    return ClassDataset(images, labels, tuple("abcdefg"))


DATASET = make()
SIZES: dict[str, Any] = {"way": 3, "shot": 2, "query": 4, "tasks": 2}


def sampler(**changes: Any) -> EpisodicSampler:
    return EpisodicSampler(DATASET, **(SIZES | changes))


def decoded(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number and class of images, ``[T, rows]`` each."""
    values = (images * 255).round().long()
    return values[:, :, 0, 0, 0], values[:, :, 1, 0, 0]


def assert_same(one: TaskBatch, other: TaskBatch) -> None:
    for field in fields(TaskBatch):
        assert getattr(one, field.name).equal(getattr(other, field.name)), field.name


def size_or_range(high: int, least: int = 1) -> st.SearchStrategy[int | tuple[int, int]]:
    sizes = st.integers(least, high)
    return sizes | st.tuples(sizes, sizes).map(lambda p: (min(p), max(p)))


def bounds(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


@settings(deadline=None)
@given(
    way=size_or_range(CLASSES, least=2),
    shot=size_or_range(4),
    query=size_or_range(5),
    tasks=st.integers(1, 4),
    seed=st.integers(0, 2**62),
    index=st.integers(0, 10**9),
)
def test_what_every_batch_promises(
    way: Any, shot: Any, query: Any, tasks: int, seed: int, index: int
) -> None:
    source = sampler(way=way, shot=shot, query=query, tasks=tasks, seed=seed)
    batch = source.batch(index)
    (low_way, most_way), (low_shot, most_shot), (low_query, most_query) = map(
        bounds, (way, shot, query)
    )
    assert batch.support_x.shape == (tasks, most_way * most_shot, 2, 1, 1)
    assert batch.query_x.shape == (tasks, most_way * most_query, 2, 1, 1)
    assert batch.classes.shape == (tasks, most_way)
    for task in range(tasks):
        classes = batch.classes[task]
        size = int((classes >= 0).sum())
        assert low_way <= size <= most_way
        assert (classes[size:] == -1).all()
        assert len(classes[:size].unique()) == size
        seen = []
        for images, labels, low, most in (
            (batch.support_x, batch.support_y, low_shot, most_shot),
            (batch.query_x, batch.query_y, low_query, most_query),
        ):
            numbers, truth = decoded(images[task : task + 1])
            grid = labels[task].reshape(most_way, most)
            count = int((grid[0] >= 0).sum())
            assert low <= count <= most
            expected = torch.full((most_way, most), -1)
            expected[:size, :count] = torch.arange(size)[:, None]
            assert grid.equal(expected)
            real = labels[task] >= 0
            assert truth[0, real].equal(classes[labels[task, real]])
            assert (images[task, ~real] == 0).all()
            seen.append(numbers[0, real])
        together = torch.cat(seen)
        assert len(together.unique()) == len(together), "an image occurs twice in a task"
    assert_same(batch, source.batch(index))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), order=st.permutations(range(6)))
def test_tasks_depend_on_seed_and_index_alone(seed: int, order: list[int]) -> None:
    single = sampler(tasks=1, seed=seed, way=(2, 4), shot=(1, 3))
    tasks = {index: single.batch(index) for index in order}
    for size in (2, 3, 6):
        joint = sampler(tasks=size, seed=seed, way=(2, 4), shot=(1, 3))
        for index in reversed(range(6 // size)):
            batch = joint.batch(index)
            for t in range(size):
                assert_same(batch[t : t + 1], tasks[index * size + t])


def test_global_generators_play_no_part() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    first = sampler().batch(1)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    np.random.seed(1)
    assert_same(first, sampler().batch(1))
    torch.manual_seed(0)
    assert torch.get_rng_state().equal(state)


def test_seeds_and_indices_differ() -> None:
    batches = [sampler(seed=seed).batch(index) for seed in range(4) for index in range(4)]
    numbers = {tuple(decoded(batch.support_x)[0].flatten().tolist()) for batch in batches}
    assert len(numbers) == 16


def test_draws_stay_as_they_were() -> None:
    """Published accuracies are of these tasks."""
    batch = sampler(seed=1000).batch(3)
    assert batch.classes.tolist() == [[1, 3, 6], [2, 1, 0]]
    assert decoded(batch.support_x)[0].tolist() == [
        [10, 21, 40, 36, 69, 74],
        [24, 29, 10, 20, 9, 7],
    ]
    ragged = sampler(seed=1000, way=(2, 4), shot=(1, 2), query=(1, 3)).batch(3)
    assert ragged.classes.tolist() == [[4, 1, 2, 3], [4, 6, 5, -1]]
    assert decoded(ragged.query_x)[0].tolist() == [
        [50, 51, 53, 19, 21, 16, 23, 27, 29, 36, 35, 33],
        [42, 0, 0, 68, 0, 0, 66, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("way", [3, (2, 4)])
def test_a_span_of_tasks_is_that_of_the_batches(way: Any) -> None:
    source = sampler(way=way)
    embeddings = torch.randn(len(DATASET), 4)
    for vectors in (None, embeddings):
        batches = [source.batch(index, vectors) for index in range(3)]
        for start, stop in ((0, 6), (1, 4), (5, 6)):
            span = source.between(start, stop, vectors)
            for task in range(start, stop):
                expected = batches[task // 2][task % 2 : task % 2 + 1]
                assert_same(span[task - start : task - start + 1], expected)


def test_fixed_sizes_are_not_padded() -> None:
    assert not sampler().batch(0).padded
    assert any(sampler(shot=(1, 2)).batch(index).padded for index in range(5))


def test_classes_and_images_are_drawn_uniformly() -> None:
    """Chi-square statistics below their 99.9 % points, for a seed that is fixed."""
    batch = sampler(tasks=3000, way=2, shot=1, query=1, seed=11).batch(0)
    drawn = torch.bincount(batch.classes.flatten(), minlength=CLASSES).double()
    expected = drawn.sum() / CLASSES
    assert ((drawn - expected) ** 2 / expected).sum() < 22.5  # 6 degrees of freedom
    numbers, classes = decoded(batch.support_x)
    for label, start in ((0, 1), (4, 1 + sum(COUNTS[:4]))):
        counts = torch.bincount(numbers[classes == label] - start, minlength=COUNTS[label])
        expected = counts.sum() / COUNTS[label]
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < {0: 26.1, 4: 36.1}[label]  # 8 and 14 degrees of freedom


def test_positions_in_a_task_do_not_follow_class_numbers() -> None:
    classes = sampler(tasks=200, way=CLASSES).batch(0).classes
    assert len(classes[:, 0].unique()) == CLASSES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_type_and_scale(dtype: torch.dtype) -> None:
    batch = sampler(dtype=dtype).batch(0)
    assert batch.support_x.dtype == batch.query_x.dtype == dtype
    assert batch.support_y.dtype == batch.query_y.dtype == batch.classes.dtype == torch.int64
    reference = sampler(dtype=torch.float64).batch(0).support_x
    torch.testing.assert_close(batch.support_x.double(), reference, rtol=1e-3, atol=0)
    white = ClassDataset(
        torch.full((4, 1, 1, 1), 255, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ("a", "b")
    )
    ones = EpisodicSampler(white, way=2, shot=1, query=1, tasks=1, dtype=dtype).batch(0)
    assert (ones.support_x == 1).all()


def test_is_a_task_source() -> None:
    source: TaskSource = sampler()
    assert source.batch(0).tasks == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"way": 0}, "way is 0"),
        ({"shot": -1}, "shot is -1"),
        ({"query": 0}, "query is 0"),
        ({"tasks": 0}, "tasks is 0"),
        ({"way": (3, 2)}, r"way is \(3, 2\)"),
        ({"shot": (0, 2)}, r"shot is \(0, 2\)"),
        ({"seed": -1}, "seed is -1"),
        ({"way": 8}, "8-way tasks need 8 classes, but this split has 7"),
        ({"way": (2, 8)}, "8-way tasks need 8 classes"),
        (
            {"shot": 5, "query": 5},
            "class 'a' has 9 images, but 5 shots [+] 5 queries need 10: lower shot or query",
        ),
        ({"shot": (1, 5), "query": (1, 5)}, "class 'a' has 9 images"),
        ({"dtype": torch.uint8}, r"dtype is torch\.uint8"),
    ],
)
def test_sizes_are_checked_at_construction(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigurationError, DataError), match=message):
        sampler(**changes)


def test_whole_classes_can_be_used() -> None:
    batch = sampler(shot=4, query=5, way=CLASSES).batch(0)
    numbers = torch.cat([decoded(batch.support_x)[0], decoded(batch.query_x)[0]], dim=1)
    assert all(len(row.unique()) == 9 * CLASSES for row in numbers)


def test_negative_index() -> None:
    with pytest.raises(DataError, match="index is -1"):
        sampler().batch(-1)


def test_tasks_of_any_inputs_are_those_of_images() -> None:
    """The rows that are drawn do not depend on what they hold."""
    images, count = DATASET, len(DATASET)
    inputs = {"ids": torch.arange(count)[:, None], "x": torch.arange(count).double()[:, None]}
    other = replace(images, inputs=inputs)
    sizes: dict[str, Any] = {"way": (2, 3), "shot": (1, 2), "query": 2, "tasks": 4, "seed": 3}
    drawn = EpisodicSampler(other, **sizes, dtype=torch.float32).batch(1)
    expected = EpisodicSampler(images, **sizes).batch(1)
    assert torch.equal(drawn.support_y, expected.support_y)
    for found, pictures, labels in (
        (drawn.support_x, expected.support_x, drawn.support_y),
        (drawn.query_x, expected.query_x, drawn.query_y),
    ):
        assert isinstance(found, dict)
        assert isinstance(pictures, torch.Tensor)
        ids = found["ids"].squeeze(-1)
        real = labels >= 0
        assert torch.equal(images.images[ids[real]] / 255, pictures[real])
        assert not ids[~real].any()
        assert found["x"].dtype == torch.float32
        assert torch.equal(found["x"].squeeze(-1), ids.float())
    assert EpisodicSampler(other, **sizes).pool is inputs
    with pytest.raises(DataError, match=r"augment is for uint8 images, .*leave it out"):
        EpisodicSampler(other, **sizes, augment=Augmentation(flip=0.5))
