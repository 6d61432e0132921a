"""Parts of an evaluation add up to that of all tasks, and what does not fit is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from host_reads import META, HostReads
from torch import nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation import counts as counts_module
from fewshot_blo.evaluation.counts import Counts, Tally
from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.evaluation.parts import merge
from fewshot_blo.evaluation.result import Evaluation, paired_difference
from fewshot_blo.heads import LinearHead
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.problems import FewShotProblem, SharedEncoder
from fewshot_blo.records.shard import Shard
from fewshot_blo.tasks import ClassDataset, EpisodicSampler, TaskBatch

TASKS = 11


def make_data(*, brighter: int = 0, names: str = "abcdefg") -> ClassDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 200, (len(names) * 8, 1, 6, 6), generator=generator)
    images += 20 * torch.arange(len(names)).repeat_interleave(8)[:, None, None, None] % 50
    return ClassDataset.from_counts((images + brighter).to(torch.uint8), dict.fromkeys(names, 8))


def make_problem(seed: int = 0) -> FewShotProblem:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(36, 6)).double()
    return SharedEncoder(encoder, LinearHead(), features=6, backend="loop")


def part(
    shard: Shard | None,
    *,
    problem: FewShotProblem | None = None,
    data: ClassDataset | None = None,
    steps: int = 3,
    tasks: int = TASKS,
    **sizes: Any,
) -> Evaluation:
    sizes = {"way": (2, 4), "shot": (1, 2), "query": (1, 5), "seed": 3, **sizes}
    sampler = EpisodicSampler(data or make_data(), tasks=4, dtype=torch.float64, **sizes)
    return evaluate(
        problem or make_problem(),
        sampler,
        tasks=tasks,
        norm="support",
        adaptation=InnerSteps(steps, SGD(0.5)),
        chunk=1,
        shard=shard,
    )


@pytest.fixture(scope="module")
def whole() -> Evaluation:
    return part(None)


@pytest.fixture(scope="module")
def thirds() -> list[Evaluation]:
    return [part(Shard(number, 3)) for number in (1, 2, 3)]


def check_equal(found: Evaluation, expected: Evaluation) -> None:
    assert torch.equal(found.values, expected.values)
    assert (found.mean, found.interval) == (expected.mean, expected.interval)
    assert torch.equal(found.counts.pairs, expected.counts.pairs)
    assert torch.equal(found.counts.bins, expected.counts.bins)
    assert torch.equal(found.confusion, expected.confusion)
    assert found.calibration_error == expected.calibration_error
    assert list(found.class_names) == list(expected.class_names)
    assert str(found) == str(expected)


@pytest.mark.parametrize("count", [1, 2, 4, TASKS])
def test_merged_parts_are_the_evaluation_of_all_tasks(count: int, whole: Evaluation) -> None:
    parts = [part(Shard(number, count)) for number in range(count, 0, -1)]
    assert sum(len(p.values) for p in parts) == TASKS
    merged = merge(parts)
    check_equal(merged, whole)
    assert merged.part is None
    assert paired_difference(whole, merged) == (0.0, 0.0)


def test_shards_are_consecutive_and_as_equal_as_can_be() -> None:
    for total in (0, 1, 7, 600):
        for count in (1, 2, 3, 8):
            places = [Shard(number, count).within(total) for number in range(1, count + 1)]
            assert [n for part in places for n in part] == list(range(total))
            assert max(map(len, places)) - min(map(len, places)) <= 1
    assert Shard(2, 3).of("abcdefg") == "de"


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda parts, whole: parts[:2], r"1 of 3 parts is missing \(3/3\).*--shard 3/3"),
        (lambda parts, whole: [parts[0]], r"2 of 3 parts are missing \(2/3, 3/3\)"),
        (lambda parts, whole: [*parts, parts[1]], "part 2/3 is given 2 times"),
        (lambda parts, whole: [], "there is no part"),
        (lambda parts, whole: [whole], "is of all tasks, no part"),
        (lambda parts, whole: [*parts, part(Shard(1, 2))], "parts of 2 and of 3"),
        (lambda parts, whole: [*parts[:2], part(Shard(3, 3), seed=4)], "differ in their protocol"),
        (lambda parts, whole: [*parts[:2], part(Shard(3, 3), steps=4)], "in their protocol"),
        (lambda parts, whole: [*parts[:2], part(Shard(3, 3), tasks=12)], "number of tasks"),
        (
            lambda parts, whole: [*parts[:2], part(Shard(3, 3), problem=make_problem(1))],
            "parts 1/3 and 3/3 differ in their checkpoint's weights",
        ),
        (
            lambda parts, whole: [*parts[:2], part(Shard(3, 3), data=make_data(brighter=1))],
            "differ in their data",
        ),
        (
            lambda parts, whole: [*parts[:2], part(Shard(3, 3), data=make_data(names="abcdefh"))],
            "differ in their data",
        ),
    ],
)
def test_parts_that_are_not_of_one_evaluation_are_refused(
    choose: Callable[[list[Evaluation], Evaluation], Sequence[Evaluation]],
    message: str,
    thirds: list[Evaluation],
    whole: Evaluation,
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        merge(choose(thirds, whole))


def test_another_norm_mode_is_refused(thirds: list[Evaluation]) -> None:
    with pytest.raises(ConfigurationError, match=r"norm mode \(support and running\)"):
        merge([*thirds[:2], replace(thirds[2], norm="running")])


def test_a_part_without_tasks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"shard is 12/12 and tasks is 11.*at most 11"):
        part(Shard(12, 12))


def test_a_shard_beyond_the_last_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"shard is 5/4.*at most 4"):
        Shard(5, 4)


def random_batch(classes: int, generator: torch.Generator) -> tuple[torch.Tensor, TaskBatch]:
    """Logits and tasks of 4 ways among many classes; a third of the queries is padding."""
    drawn = torch.stack([torch.randperm(classes, generator=generator)[:4] for _ in range(3)])
    y = torch.randint(0, 4, (3, 20), generator=generator)
    y = y.masked_fill(torch.rand(3, 20, generator=generator) < 0.3, -1)
    empty = torch.zeros(3, 20, 1)
    return torch.randn(3, 20, 4, generator=generator), TaskBatch(empty, y, empty, y, drawn)


def test_pairs_of_many_classes_take_the_memory_of_those_that_occur(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20,000 classes would have 3.2 GB in a matrix; pairs are put together now and then."""
    monkeypatch.setattr(counts_module, "_MOST_PENDING", 100)
    generator, expected = torch.Generator().manual_seed(0), Counter[tuple[int, int]]()
    tally = Tally(torch.device("cpu"))
    for _ in range(5):
        logits, batch = random_batch(20_000, generator)
        tally.add(logits, batch)
        for t, classes in enumerate(batch.classes.tolist()):
            for row, y in zip(logits[t], batch.query_y[t].tolist(), strict=True):
                expected[classes[y], classes[int(row.argmax())]] += y >= 0
    pairs = {(a, b): n for a, b, n in tally.counts().pairs.tolist()}
    assert pairs == {pair: n for pair, n in expected.items() if n}
    assert sorted(pairs) == list(pairs)


def test_counts_by_class_are_those_of_the_matrix() -> None:
    tally = Tally(torch.device("cpu"))
    for seed in range(4):
        tally.add(*random_batch(6, torch.Generator().manual_seed(seed)))
    counts = tally.counts()
    right, queries = counts.by_class()
    assert torch.equal(right, counts.confusion().diagonal())
    assert torch.equal(queries, counts.confusion().sum(1))
    again = Counts.of_confusion(counts.confusion())
    assert torch.equal(again.pairs, counts.pairs)
    assert Counts.none().confusion().shape == (0, 0)


def test_counting_reads_nothing_on_the_host() -> None:
    logits, batch = random_batch(9, torch.Generator().manual_seed(0))
    tally = Tally(META)
    with HostReads() as reads:
        tally.add(logits.to(META), batch.to(META))
    assert reads.places == []
