"""Every protocol keeps what a batch promises, and draws from its published distribution."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import ClassDataset, ClassSampler, DataError, EpisodicSampler, TaskBatch
from fewshot_blo.tasks.batch import UNKNOWN
from fewshot_blo.tasks.protocols import (
    PROTOCOLS,
    Classes,
    Dirichlet,
    Episodic,
    MetaDataset,
    OpenSet,
    Plan,
    Protocol,
    Remaining,
    Sizes,
    Unequal,
)
from fewshot_blo.tasks.protocols.dirichlet import whole

COUNTS = [12, 20, 14, 12, 17, 30, 13, 12, 25, 16, 12, 19]


def make(counts: list[int] = COUNTS, names: tuple[str, ...] = ()) -> ClassDataset:
    """Image ``i`` holds its number, in two bytes."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    numbers = torch.arange(len(labels))
    images = torch.stack([numbers // 256, numbers % 256], dim=1).to(torch.uint8)[:, :, None, None]
    names = names or tuple(f"{'ab'[i % 2]}/{i}" for i in range(len(counts)))
    return ClassDataset(images, labels, names)


DATASET = make()
EXAMPLES: dict[type[Protocol], list[Protocol]] = {
    Episodic: [Episodic(3, 2, 4), Episodic((2, 4), (1, 3), (2, 5))],
    Unequal: [Unequal(3, (1, 5), 4), Unequal(3, 1, 4, shots=(1, 2, 7))],
    MetaDataset: [
        MetaDataset((2, 8), 4),
        MetaDataset((3, 6), 3, 20, grouped=True, imbalance=4, contribution=5),
    ],
    Dirichlet: [Dirichlet(3, 2, 4), Dirichlet(4, 1, 3, alpha=20)],
    OpenSet: [OpenSet(3, 2, 4, 2), OpenSet(2, 1, 3, 1)],
    Remaining: [Remaining(3, 2, 4), Remaining(3, 2, 4, remaining="support")],
}
every_protocol = pytest.mark.parametrize(
    "protocol", [own for kind in PROTOCOLS for own in EXAMPLES[kind]], ids=lambda own: str(own)[:40]
)


def sampler(protocol: Protocol, tasks: int = 4, **settings: Any) -> ClassSampler:
    return ClassSampler(DATASET, protocol, tasks=tasks, **settings)


def numbers(images: torch.Tensor) -> torch.Tensor:
    """Numbers of images ``[..., 2, 1, 1]``."""
    values = (images * 255).round().long()
    return 256 * values[..., 0, 0, 0] + values[..., 1, 0, 0]


def assert_same(one: TaskBatch, other: TaskBatch) -> None:
    for name, tensor in one.flat.items():
        assert tensor.equal(other.flat[name]), name


@every_protocol
def test_what_every_batch_promises(protocol: Protocol) -> None:
    source = sampler(protocol, tasks=20, seed=3)
    batch = source.batch(1)
    assert batch.classes.shape == (20, protocol.most_way)
    assert batch.support_y.shape[1] == source.sizes.support
    assert batch.query_y.shape[1] == source.sizes.query
    for task in range(20):
        classes = batch.classes[task]
        way = int((classes >= 0).sum())
        assert way >= 2
        assert (classes[way:] == -1).all()
        assert len(classes[:way].unique()) == way
        support, query = batch.support_y[task], batch.query_y[task]
        # Every class of the task has support images, and no other has.
        assert set(support.unique().tolist()) - {-1} == set(range(way))
        assert set(query.unique().tolist()) <= {-1, UNKNOWN, *range(way)}
        used = [
            numbers(batch.support_x[task][support != -1]),
            numbers(batch.query_x[task][query != -1]),
        ]
        together = torch.cat(used)
        assert len(together.unique()) == len(together), "an image occurs twice in a task"
        for images, labels in zip(used, (support, query), strict=True):
            labels = labels[labels != -1]
            own = DATASET.labels[images]
            assert own[labels >= 0].equal(classes[labels[labels >= 0]])
            assert not torch.isin(own[labels == UNKNOWN], classes[:way]).any()
        for x, y in ((batch.support_x, support), (batch.query_x, query)):
            assert (x[task][y == -1] == 0).all()
            if not protocol.apart:  # Packed: real rows first, in the order of the classes.
                real = (y != -1).long()
                assert real.equal(real.sort(descending=True).values)
                known = y[y >= 0]
                assert known.equal(known.sort().values)


@every_protocol
def test_tasks_depend_on_seed_and_number_alone(protocol: Protocol) -> None:
    single = sampler(protocol, tasks=1, seed=5)
    tasks = [single.batch(number) for number in (3, 0, 5, 1, 4, 2)]
    order = (3, 0, 5, 1, 4, 2)
    joint = sampler(protocol, tasks=3, seed=5)
    for index in (1, 0):
        for t in range(3):
            assert_same(joint.batch(index)[t : t + 1], tasks[order.index(3 * index + t)])
    assert_same(joint.between(2, 4), TaskBatch.joined([tasks[order.index(n)] for n in (2, 3)]))
    other = sampler(protocol, tasks=3, seed=6).batch(0)
    assert not joint.batch(0).support_x.equal(other.support_x)
    vectors = torch.randn(len(DATASET), 3)
    embedded = joint.between(2, 4, vectors)
    real = embedded.support_rows
    rows = numbers(joint.between(2, 4).support_x)[real]
    assert embedded.support_x[real].equal(vectors[rows])


@every_protocol
def test_descriptions_tell_protocols_apart(protocol: Protocol) -> None:
    every = [own.describe() for kind in PROTOCOLS for own in EXAMPLES[kind]]
    assert every.count(protocol.describe()) == 1
    assert protocol.describe() in repr(sampler(protocol))


def test_episodic_sampler_is_the_episodic_protocol() -> None:
    own = EpisodicSampler(DATASET, way=(2, 4), shot=(1, 3), query=(2, 5), tasks=4, seed=2)
    assert_same(own.batch(3), sampler(Episodic((2, 4), (1, 3), (2, 5)), seed=2).batch(3))


def test_shots_of_a_list_and_of_a_range() -> None:
    batch = sampler(Unequal(3, 1, 4, shots=(1, 2, 7)), tasks=30).batch(0)
    counts = [sorted(torch.bincount(y[y >= 0]).tolist()) for y in batch.support_y]
    assert counts == [[1, 2, 7]] * 30
    assert batch.support_y.shape[1] == 10
    drawn = sampler(Unequal(3, (1, 5), 4), tasks=300).batch(0)
    seen = Counter(n for y in drawn.support_y for n in torch.bincount(y[y >= 0]).tolist())
    assert set(seen) == {1, 2, 3, 4, 5}
    assert max(seen.values()) < 1.5 * min(seen.values())


def by_loop(
    counts: list[int], groups: list[list[int]], episodes: int, seed: int
) -> list[tuple[int, int, int, int]]:
    """Way, queries a class, support size and shots of one class, from the paper's text.

    Written for this test with Python's own generator, in the words of section 3.2 and appendix:
    a class adds the ceiling of beta times its images, at most 100, to a support set of at most 500.
    """
    rng = random.Random(seed)
    rows = []
    for number in range(episodes):
        group = rng.choice(groups)
        way = rng.randint(5, min(50, len(group)))
        classes = [counts[c] for c in rng.sample(group, way)]
        query = min(10, min(n // 2 for n in classes))
        beta = 1 - rng.random()
        size = min(500, sum(math.ceil(beta * min(100, n - query)) for n in classes))
        weights = [n * 2 ** rng.uniform(-1, 1) for n in classes]
        shots = [
            min(int(weight / sum(weights) * (size - way)) + 1, n - query)
            for weight, n in zip(weights, classes, strict=True)
        ]
        rows.append((way, query, sum(shots), shots[number % way]))
    return rows


@pytest.mark.parametrize("grouped", [False, True])
def test_meta_dataset_draws_as_its_paper_says(grouped: bool) -> None:
    """Kolmogorov-Smirnov tests, for seeds that are fixed; ``benchmarks`` has the published code."""
    numbers_of_images = [5 + (7 * i * i) % 400 for i in range(60)]
    names = [f"{i // 15 if i < 30 else 2}/{i}" for i in range(60)]
    classes = Classes(np.array(numbers_of_images), names)
    groups = [own.tolist() for own in classes.groups] if grouped else [list(range(60))]
    assert [len(own) for own in groups] == ([15, 15, 30] if grouped else [60])
    protocol = MetaDataset(grouped=grouped)
    ours = []
    for number in range(2500):
        plan = protocol.plan(classes, np.random.default_rng((11, number)))
        place = number % len(plan.classes)
        ours.append((len(plan.classes), plan.queries[0], plan.shots.sum(), plan.shots[place]))
    theirs = by_loop(numbers_of_images, groups, 2500, seed=4)
    for one, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        assert ks_2samp(one, other).pvalue > 0.02


def rounded(shares: list[float], total: int) -> list[int]:
    """The published division of alpha-TIM's sampler, in a plain loop."""
    numbers = [share * total for share in shares]
    while (found := sum(round(x) for x in numbers)) != total:
        fractions = [abs(math.modf(x)[0] - 0.5) for x in numbers]
        place = fractions.index(min(fractions))
        numbers[place] = math.floor(numbers[place]) if found > total else math.ceil(numbers[place])
    return [round(x) for x in numbers]


def test_dirichlet_queries_are_divided_as_published() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        shares = rng.dirichlet(np.full(5, 2.0))
        assert whole(shares.copy(), 75).tolist() == rounded(shares.tolist(), 75)


def test_dirichlet_queries_are_imbalanced_and_sum_to_the_total() -> None:
    classes = Classes(np.full(10, 600), [str(i) for i in range(10)])
    protocol = Dirichlet()
    plans = [protocol.plan(classes, np.random.default_rng((1, i))) for i in range(4000)]
    queries = np.array([plan.queries for plan in plans])
    assert (queries.sum(1) == 75).all()
    # A share of Dirichlet(2, ..., 2) has mean 1/5 and variance (1/5)(4/5) / 11.
    assert queries.mean() == 15
    assert queries[:, 0].mean() == pytest.approx(15, abs=0.5)
    assert queries[:, 0].std() == pytest.approx(75 * math.sqrt(0.16 / 11), rel=0.03)


def test_shares_that_do_not_fit_are_drawn_again() -> None:
    classes = Classes(np.full(5, 20), list("abcde"))
    for number in range(50):
        plan = Dirichlet(5, 1, 12).plan(classes, np.random.default_rng(number))
        assert plan.queries.sum() == 60
        assert plan.queries.max() <= 19
    with pytest.raises(DataError, match=r"none of 10000 Dirichlet.*: lower query, or raise alpha"):
        Dirichlet(5, 1, 19, alpha=0.1).plan(classes, np.random.default_rng(0))


def test_unknown_queries() -> None:
    batch = sampler(OpenSet(3, 2, 4, 2), tasks=10).batch(0)
    assert ((batch.query_y == UNKNOWN).sum(1) == 8).all()
    assert (batch.support_y >= 0).all()
    assert not batch.padded


@pytest.mark.parametrize("remaining", ["query", "support"])
def test_as_many_as_there_are(remaining: Any) -> None:
    batch = sampler(Remaining(3, 2, 4, remaining=remaining), tasks=10).batch(0)
    for task in range(10):
        used = sum(int((y[task] >= 0).sum()) for y in (batch.support_y, batch.query_y))
        assert used == sum(COUNTS[c] for c in batch.classes[task])


def test_meta_dataset_pads_to_what_the_images_allow() -> None:
    assert sampler(MetaDataset((2, 8), 4)).sizes == Sizes(154 - 8, 32)
    assert sampler(MetaDataset((2, 8), 4, contribution=5)).sizes == Sizes(40, 32)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Episodic(13, 1, 1), "13-way tasks need 13 classes, but this split has 12"),
        (OpenSet(8, 1, 1, 5), "8-way tasks with 5 unknown classes need 13 .*lower way or unknown"),
        (MetaDataset((13, 20)), "13-way tasks need 13 classes"),
        (MetaDataset((7, 20), grouped=True), "group 'a' has 6 classes, and ways starts at 7"),
        (Unequal(3, 1, 4, shots=(1, 2, 9)), "class 'a/0' has 12 images, but 9 shots"),
        (Remaining(3, 12), "class 'a/0' has 12 images, but 12 shots [+] 1 queries need 13"),
        (Dirichlet(3, 1, 12), "class 'a/0' has 12 images, but 1 shots [+] 12 queries"),
    ],
)
def test_too_few_classes_or_images(protocol: Protocol, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sampler(protocol)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Unequal, {"shots": (1, 2)}, "shots has 2 numbers, and way is 5"),
        (Unequal, {"shot": 2}, "shot is 2 and shots is empty, which leaves all classes equal"),
        (MetaDataset, {"ways": (9, 5)}, r"ways is \(9, 5\)"),
        (MetaDataset, {"support": 30}, "support is 30, and ways goes up to 50"),
        *(
            (kind, {"way": 1}, "way is 1: .* or every answer is right")
            for kind in EXAMPLES
            if kind is not MetaDataset
        ),
        (MetaDataset, {"ways": (1, 5)}, r"ways\[0\] is 1: .* or every answer is right"),
        (Dirichlet, {"alpha": 0.0}, "alpha is 0"),
        (OpenSet, {"unknown": 0}, "unknown is 0"),
    ],
)
def test_invalid_settings(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, ConfigurationError), match=message):
        kind(**settings)


@dataclass(frozen=True)
class Wrong(Protocol):
    """Plans more than it says."""

    way: int = 3
    shots: int = 2
    classes: int = 3

    def sizes(self, classes: Classes) -> Sizes:
        return Sizes(6, 6)

    def plan(self, classes: Classes, rng: np.random.Generator) -> Plan:
        own = np.arange(self.classes)
        return Plan(own, np.full(self.classes, self.shots), np.full(self.classes, 1))

    def describe(self) -> str:
        return "wrong"


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Wrong(classes=4), "Wrong plans 4 classes, and 3 are the most"),
        (Wrong(shots=3), "Wrong plans 9 support images, and 6 are the most"),
        (Wrong(shots=12), "Wrong plans 36 support images"),
    ],
)
def test_plans_beyond_their_sizes(protocol: Protocol, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sampler(protocol).batch(0)
