from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.tasks.batch import UNKNOWN


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
    for name, whole in batch.flat.items():
        piece = part.flat[name]
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


def regression(rows: int = 4) -> TaskBatch:
    """5 tasks with inputs by name and float targets."""
    generator = torch.Generator().manual_seed(0)

    def inputs(rows: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(9, (5, rows, 7), generator=generator)
        return {"ids": ids, "weights": torch.rand(5, rows, generator=generator)}

    targets = [torch.rand(5, n, 2, generator=generator) for n in (rows, 3)]
    return TaskBatch(inputs(rows), targets[0], inputs(3), targets[1])


def test_tasks_without_classes_have_any_inputs_and_targets() -> None:
    batch = regression()
    assert (batch.tasks, batch.way, batch.padded, batch.is_pictures) == (5, 0, False, False)
    assert batch.support_rows.shape == (5, 4)
    assert repr(batch) == (
        "TaskBatch(5 tasks, 4 support and 3 query rows, inputs ids [7] int64 on cpu, weights [] "
        "float32 on cpu, targets [2])"
    )


def test_parts_copies_and_joined_batches_keep_inputs_by_name() -> None:
    batch = regression()
    again = TaskBatch.joined(list(batch.to("cpu", torch.float64).chunks(2)))
    for name, tensor in batch.flat.items():
        assert again.flat[name].equal(tensor.double() if tensor.is_floating_point() else tensor)
    assert not again.flat["support_x/ids"].is_floating_point()


def test_rows_of_tasks_without_classes_say_which_are_padded() -> None:
    rows = torch.ones(5, 4, dtype=torch.bool)
    rows[3, 2:] = False
    batch = replace(regression(), support_rows=rows)
    assert batch.padded
    assert [part.padded for part in batch.chunks(2)] == [False, True, False]
    assert batch[3:].support_rows.equal(rows[3:])


def test_a_query_of_no_class_of_the_task_is_not_padded() -> None:
    labels = make().query_y.clone()
    labels[2, 1] = UNKNOWN
    assert not replace(make(), query_y=labels).padded


def test_inputs_by_name_that_differ_in_their_rows_are_named() -> None:
    inputs = {"ids": torch.zeros(5, 4, 2), "mask": torch.zeros(5, 3)}
    with pytest.raises(ConfigurationError, match=r"support_x/mask has leading shape \[5, 3\]"):
        replace(regression(), support_x=inputs)
    with pytest.raises(ConfigurationError, match=r"support_x\['mask'\] is None"):
        replace(regression(), support_x={"ids": inputs["ids"], "mask": None})


def test_support_and_query_inputs_have_the_same_names() -> None:
    x, y = torch.zeros(2, 3, 1), torch.zeros(2, 3, 1)
    for support, query in (({"a": x}, {"b": x}), ({"a": x}, x), ({}, {})):
        with pytest.raises(ConfigurationError, match=r"in support_x and .* in query_x: both must"):
            TaskBatch(support, y, query, y)


@pytest.mark.parametrize("rows", [torch.ones(2, 3), torch.ones(2, 3, 1, dtype=torch.bool)])
def test_rows_are_a_mask(rows: torch.Tensor) -> None:
    """Of numbers, ~rows and x[rows] would be something else."""
    x = torch.zeros(2, 3, 1)
    for name in ("support_rows", "query_rows"):
        with pytest.raises(ConfigurationError, match=f"{name} are .* must be a mask"):
            TaskBatch(x, x, x, x, **{name: rows})
