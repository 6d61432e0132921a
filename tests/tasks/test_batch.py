from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from fewshot_blo.tasks import TaskBatch


def make(tasks: int = 5) -> TaskBatch:
    generator = torch.Generator().manual_seed(0)
    return TaskBatch(
        torch.rand(tasks, 6, 1, 4, 4, generator=generator),
        torch.arange(3).repeat_interleave(2).repeat(tasks, 1),
        torch.rand(tasks, 3, 1, 4, 4, generator=generator),
        torch.arange(3).repeat(tasks, 1),
        torch.arange(3 * tasks).reshape(tasks, 3),
    )


def test_sizes() -> None:
    batch = make()
    assert (batch.tasks, batch.way, batch.padded) == (5, 3, False)


@pytest.mark.parametrize("name", ["support_y", "query_y"])
def test_padded(name: str) -> None:
    labels = getattr(make(), name).clone()
    labels[2, 1] = -1
    assert replace(make(), **{name: labels}).padded


def test_whether_a_part_is_padded() -> None:
    labels = make().query_y.clone()
    labels[2, 1] = -1
    batch = replace(make(), query_y=labels)
    assert batch.padded
    assert batch[2:].padded
    assert not batch[:2].padded


def test_parts_and_copies_know_which_tasks_are_padded_without_a_look_at_their_labels() -> None:
    """Tensors on the device "meta" have no values to look at."""
    labels = make().query_y.clone()
    labels[2, 1] = -1
    batch = replace(make(), query_y=labels).to("meta")
    assert batch.padded
    assert batch.to("meta")[1:][1:].padded
    assert [part.padded for part in batch.chunks(2)] == [False, True, False]
    for part in (make().to("meta"), make().to("meta")[1:3]):
        assert not part.padded
    assert all(part.padded for part in make().to("meta").known(padded=True).chunks(2))


def test_slices_are_views() -> None:
    batch = make()
    part = batch[1:3]
    assert part.tasks == 2
    for field in fields(TaskBatch):
        whole, piece = getattr(batch, field.name), getattr(part, field.name)
        assert piece.equal(whole[1:3])
        assert piece.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_chunks_cover_the_batch_in_order(size: int) -> None:
    batch = make()
    chunks = list(batch.chunks(size))
    assert all(chunk.tasks <= size for chunk in chunks)
    for field in fields(TaskBatch):
        joined = torch.cat([getattr(chunk, field.name) for chunk in chunks])
        assert joined.equal(getattr(batch, field.name))


def test_to_changes_the_type_of_images_only() -> None:
    batch = make().to("cpu", torch.float64)
    assert batch.support_x.dtype == batch.query_x.dtype == torch.float64
    assert batch.support_y.dtype == batch.query_y.dtype == batch.classes.dtype == torch.int64
    assert make().to("cpu").support_x.dtype == torch.float32
    moved = make().to("meta")
    assert all(getattr(moved, field.name).device.type == "meta" for field in fields(TaskBatch))


def test_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        make().support_x = torch.zeros(1)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["support_x", "support_y", "query_x", "query_y"])
def test_leading_axes_must_agree(name: str) -> None:
    tensor = getattr(make(), name)
    with pytest.raises(ValueError, match=f"{name} has 4 tasks and classes has 5"):
        replace(make(), **{name: tensor[:4]})
    with pytest.raises(ValueError, match=f"{name[:-2]}_x has leading shape"):
        replace(make(), **{name: tensor[:, :2]})
