from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import EpisodicSampler, TaskSource
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.interop import Learn2LearnTasks, from_arrays
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

BYTES = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
LABELS = [2, 0, 1, 0, 2, 2]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
@pytest.mark.parametrize(
    "images",
    [BYTES, BYTES.transpose(0, 2, 3, 1), (BYTES / 255).astype(np.float32), BYTES / 255],
    ids=["channels-first", "channels-last", "float32", "float64"],
)
def test_images_of_every_form(images: np.ndarray, kind: Callable[[np.ndarray], Any]) -> None:
    dataset = from_arrays(kind(images), kind(np.array(LABELS)))
    assert dataset.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert dataset.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(dataset.images.numpy(), BYTES[[1, 3, 2, 0, 4, 5]])


def test_grey_images_and_text_labels() -> None:
    dataset = from_arrays(BYTES[:, 0], ["c", "a", "b", "a", "c", "c"])
    assert dataset.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(dataset.images.numpy(), BYTES[[1, 3, 2, 0, 4, 5], :1])
    with pytest.raises(DataError, match="class 'b' has 1 images"):
        EpisodicSampler(dataset, way=2, shot=1, query=1, tasks=1)


def test_names() -> None:
    by_number = from_arrays(BYTES, LABELS, names=["cat", "dog", "ant"])
    assert by_number.class_names == ("cat", "dog", "ant")
    assert by_number.counts.tolist() == [2, 1, 3]
    by_text = from_arrays(BYTES, ["x", "z", "y", "z", "x", "x"], names=["z", "y", "x"])
    assert by_text.class_names == ("z", "y", "x")
    assert by_text.images.equal(by_number.images)
    assert from_arrays(BYTES, [10, -3, 7, -3, 10, 10]).class_names == ("-3", "7", "10")


def test_floats_are_rounded_to_the_nearest_byte() -> None:
    images = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).reshape(4, 1, 1)
    assert from_arrays(images, [0, 0, 0, 0]).images.flatten().tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (BYTES[0], [0] * 6, None, r"6 labels|one label per image"),
        (BYTES[:, :2], LABELS, None, r"shape \[6, 2, 5, 4\].*C 1 or 3"),
        (BYTES[0, 0], [0] * 5, None, r"shape \[5, 4\]"),
        (BYTES.astype(np.int32), LABELS, None, r"torch\.int32"),
        (BYTES / 254, LABELS, None, r"in \[0, 1\]"),
        (BYTES / 255 - 0.1, LABELS, None, "run from -0.1 to"),
        (np.full((6, 2, 2), np.nan), LABELS, None, "run from nan to nan"),
        (BYTES, LABELS[:5], None, "one label per image"),
        (BYTES, np.array(LABELS) / 2, None, "labels are float64"),
        (BYTES, LABELS, ["a", "b"], "labels run from 0 to 2, but there are 2 names"),
        (BYTES, LABELS, ["a", "b", "c", "d"], "class 'd' has no images"),
        (BYTES, LABELS, ["a", "b", "a"], "unique"),
        (BYTES, ["a", "b", "c", "a", "a", "a"], ["a", "b"], "label 'c' is not among"),
    ],
)
def test_what_does_not_fit(images: Any, labels: Any, names: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(images, labels, names=names)


class FakeTaskSet:
    """The interface of learn2learn's Taskset: global generators, remembered tasks."""

    def __init__(self, way: int = 3, images: int = 5, num_tasks: int = -1) -> None:
        self.way, self.images, self.num_tasks = way, images, num_tasks

    def sample_task_description(self) -> list[tuple[int, int]]:
        classes = random.sample(range(10), self.way)
        rows = [(c, k) for c in classes for k in np.random.permutation(20)[: self.images]]
        random.shuffle(rows)
        return rows

    def get_task(self, task_description: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        images = torch.tensor([[100.0 * c + k] for c, k in task_description])
        return images + torch.rand(()) / 2, torch.tensor([c for c, _ in task_description])


def adapted(taskset: FakeTaskSet, tasks: int = 2, seed: int = 0) -> Learn2LearnTasks:
    return Learn2LearnTasks(taskset, way=3, shot=2, query=3, tasks=tasks, seed=seed)


def test_support_and_query_of_a_shuffled_task() -> None:
    source: TaskSource = adapted(FakeTaskSet())
    batch = source.batch(3)
    assert batch.support_x.shape == (2, 6, 1)
    assert batch.query_x.shape == (2, 9, 1)
    assert batch.support_y.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert batch.query_y.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 2
    for images, labels in ((batch.support_x, batch.support_y), (batch.query_x, batch.query_y)):
        assert (images[..., 0] // 100).long().equal(batch.classes.gather(1, labels))
    for support, query in zip(batch.support_x, batch.query_x, strict=True):
        assert len(torch.cat([support, query]).unique()) == 15


def test_tasks_are_a_pure_function_of_seed_and_index() -> None:
    forward = [adapted(FakeTaskSet(), tasks=1).batch(i).support_x for i in range(6)]
    shared = FakeTaskSet()
    adapted(shared, seed=1).batch(0)
    backward = [adapted(shared, tasks=1).batch(i).support_x for i in reversed(range(6))]
    assert all(a.equal(b) for a, b in zip(forward, reversed(backward), strict=True))
    assert torch.cat(forward).equal(
        torch.cat([adapted(shared, tasks=3).batch(i).support_x for i in range(2)])
    )
    assert not forward[0].equal(forward[1])
    assert not forward[0].equal(adapted(shared, tasks=1, seed=1).batch(0).support_x)


def test_finite_task_set_repeats() -> None:
    source = adapted(FakeTaskSet(num_tasks=4), tasks=4)
    assert source.batch(0).query_x.equal(source.batch(1).query_x)
    assert len(source.batch(0).support_x.flatten(1).unique(dim=0)) == 4


def test_global_generators_are_put_back() -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    adapted(FakeTaskSet()).batch(0)
    with pytest.raises(DataError):
        adapted(FakeTaskSet(way=4)).batch(0)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


@pytest.mark.parametrize(
    ("taskset", "message"),
    [
        (FakeTaskSet(way=4), "has 4 classes, but way is 3"),
        (FakeTaskSet(images=4), "has 4 images of class .* 2 shots [+] 3 queries need 5"),
        (FakeTaskSet(images=6), "has 6 images of class .* set the task set's KShots to 5"),
    ],
)
def test_counts_that_do_not_fit(taskset: FakeTaskSet, message: str) -> None:
    with pytest.raises(DataError, match=message):
        adapted(taskset).batch(0)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ConfigurationError, match="shot is 0"):
        Learn2LearnTasks(FakeTaskSet(), way=3, shot=0, query=1, tasks=1)


@pytest.mark.parametrize("num_tasks", [-1, 5])
def test_the_real_learn2learn(num_tasks: int) -> None:
    torchvision_module()  # learn2learn imports it, and may find it broken
    l2l = pytest.importorskip("learn2learn")
    images = torch.arange(200.0).reshape(200, 1)
    data = l2l.data.MetaDataset(
        torch.utils.data.TensorDataset(images, torch.arange(10).repeat_interleave(20))
    )
    transforms = [
        l2l.data.transforms.NWays(data, 3),
        l2l.data.transforms.KShots(data, 5),
        l2l.data.transforms.LoadData(data),
    ]

    def source() -> Learn2LearnTasks:
        taskset = l2l.data.Taskset(data, transforms, num_tasks=num_tasks)
        return Learn2LearnTasks(taskset, way=3, shot=2, query=3, tasks=4)

    batch = source().batch(2)
    assert (batch.query_x[..., 0] // 20).long().equal(batch.classes.gather(1, batch.query_y))
    other = source()
    other.batch(0)
    assert other.batch(2).support_x.equal(batch.support_x)
