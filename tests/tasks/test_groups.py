from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fewshot_blo.tasks import ClassDataset, DataError
from fewshot_blo.tasks.group_sampler import GroupSampler
from fewshot_blo.tasks.groups import GroupedDataset, GroupSplits

COUNTS = {"a": 3, "b": 7, "c": 4}
ROWS = torch.arange(14)
GROUPS = torch.repeat_interleave(torch.arange(3), torch.tensor([3, 7, 4]))


def make(categories: tuple[str, ...] = ()) -> GroupedDataset:
    """Example ``i`` has the input ``i`` and the target ``10 i``, or the label ``i % 2``."""
    examples = ClassDataset.from_counts(ROWS[:, None].double(), COUNTS)
    targets = ROWS % len(categories) if categories else 10 * ROWS[:, None].double()
    return GroupedDataset(examples, targets, categories)


def tensor_of(inputs: Any) -> Tensor:
    assert isinstance(inputs, Tensor)
    return inputs


def test_select() -> None:
    chosen = make().select([2, 0])
    assert chosen.group_names == ("c", "a")
    assert chosen.targets[:, 0].tolist() == [100, 110, 120, 130, 0, 10, 20]
    assert tensor_of(chosen.examples.inputs)[:, 0].mul(10).equal(chosen.targets[:, 0])


@pytest.mark.parametrize("categories", [(), ("even", "odd")])
def test_a_task_is_one_group(categories: tuple[str, ...]) -> None:
    dataset = make(categories)
    sampler = GroupSampler(dataset, shot=2, query=3, tasks=40, seed=1)
    batch = sampler.batch(0)
    assert batch.way == len(categories)
    seen = set()
    for t in range(40):
        support = tensor_of(batch.support_x)[t, :, 0].long()
        query = tensor_of(batch.query_x)[t, batch.query_rows[t], 0].long()
        groups = {int(GROUPS[row]) for row in (*support, *query)}
        assert len(groups) == 1
        seen |= groups
        assert len({*support.tolist(), *query.tolist()}) == 2 + len(query)
        assert len(query) == min(3, list(COUNTS.values())[groups.pop()] - 2)
        for rows, targets in (
            (support, batch.support_y[t]),
            (query, batch.query_y[t, batch.query_rows[t]]),
        ):
            expected = rows % 2 if categories else 10 * rows[:, None].float()
            assert torch.equal(targets, expected)
        padding = batch.query_y[t, ~batch.query_rows[t]]
        assert (padding == (-1 if categories else 0)).all()
    assert seen == {0, 1, 2}
    one = sampler.between(7, 8)
    assert all(torch.equal(x, batch.flat[name][7:8]) for name, x in one.flat.items())
    assert batch.padded
    doubled = 2 * tensor_of(sampler.pool)
    embedded = sampler.between(0, 40, doubled)
    assert torch.equal(tensor_of(embedded.support_x), 2 * tensor_of(batch.support_x))


def test_texts() -> None:
    dataset = make(("even", "odd"))
    assert repr(dataset) == (
        "GroupedDataset(3 groups, 3 to 7 examples each, 14 in all, [1] float64 on cpu, "
        "2 categories int64 on cpu)"
    )
    splits = GroupSplits(make(), make(), make(), notes=("One group is left out.",))
    assert [name for name, _ in splits] == ["train", "validation", "test"]
    assert repr(splits).count("targets [1] float64 on cpu") == 3
    assert repr(splits).endswith("One group is left out.")
    assert "2 shots, 3 queries of a group, 4 tasks a batch, seed 0" in repr(
        GroupSampler(dataset, shot=2, query=3, tasks=4)
    )


@pytest.mark.parametrize(
    ("targets", "categories", "message"),
    [
        (torch.zeros(13, 1), (), "14 examples have targets of shape"),
        (ROWS, (), "are torch.int64 and have no categories"),
        (ROWS.float(), ("x", "y"), "must be int64"),
        (ROWS, ("x", "y"), r"labels run from 0 to 13.*in \[0, 2\)"),
    ],
)
def test_targets_that_do_not_fit(targets: Tensor, categories: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        GroupedDataset(make().examples, targets, categories)


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(DataError, match=r"1 of 3 groups have no query .* 'a' has 3 examples"):
        GroupSampler(make(), shot=3, query=1, tasks=1)
    with pytest.raises(DataError, match="index is -1"):
        GroupSampler(make(), shot=1, query=1, tasks=1).batch(-1)
    with pytest.raises(DataError, match="floating-point dtype"):
        GroupSampler(make(), shot=1, query=1, tasks=1, dtype=torch.int64)
