from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewshot_blo.tasks import ClassDataset, DataError, Splits


def make(counts: list[int], prefix: str = "class", side: int = 2) -> ClassDataset:
    """Image ``i`` is filled with ``i``, save for one corner."""
    images = torch.arange(sum(counts), dtype=torch.uint8)[:, None, None, None]
    images = images.repeat(1, 1, side, side)
    images[:, :, 0, 0] = 255
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return ClassDataset(images, labels, tuple(f"{prefix}{n}" for n in range(len(counts))))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_from_labels_sorts_and_keeps_order_within_a_class(values: list[int]) -> None:
    distinct = sorted(set(values))
    labels = torch.tensor([distinct.index(value) for value in values])
    images = torch.arange(len(values), dtype=torch.uint8)[:, None, None, None]
    dataset = ClassDataset.from_labels(images, labels, [str(value) for value in distinct])
    order = sorted(range(len(values)), key=lambda row: values[row])
    assert dataset.images.flatten().tolist() == order
    assert dataset.labels.tolist() == labels[order].tolist()
    assert dataset.counts.tolist() == [values.count(value) for value in distinct]
    assert len(dataset) == len(values)


def test_from_counts() -> None:
    expected = make([2, 1, 3])
    dataset = ClassDataset.from_counts(expected.images, {"class0": 2, "class1": 1, "class2": 3})
    assert dataset.labels.tolist() == expected.labels.tolist()
    assert dataset.class_names == expected.class_names
    with pytest.raises(DataError, match=r"6 images have labels of shape \[5\]"):
        ClassDataset.from_counts(expected.images, {"class0": 2, "class1": 3})


@given(st.data())
def test_select(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    classes = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, unique=True))
    dataset = make(counts)
    chosen = dataset.select(classes)
    assert chosen.class_names == tuple(f"class{c}" for c in classes)
    for position, c in enumerate(classes):
        expected = dataset.images[dataset.labels == c]
        assert chosen.images[chosen.labels == position].equal(expected)


def test_select_nothing() -> None:
    with pytest.raises(DataError, match="no class is selected"):
        make([2]).select([])


def test_rotations_are_classes_of_their_own() -> None:
    dataset = make([2, 3])
    turned = dataset.with_rotations()
    assert turned.class_names == tuple(
        f"class{n}/rot{angle}" for angle in ("000", "090", "180", "270") for n in range(2)
    )
    assert turned.counts.tolist() == [2, 3] * 4
    # The marked corner goes round counter-clockwise.
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    for quarter, (row, column) in enumerate(corners):
        part = turned.images[5 * quarter : 5 * quarter + 5]
        assert (part[:, 0, row, column] == 255).all()
        assert part.rot90(-quarter, dims=(2, 3)).equal(dataset.images)


def test_mirror_images_are_classes_of_their_own() -> None:
    dataset = make([2, 3])
    doubled = dataset.with_mirror_images()
    assert doubled.class_names == ("class0", "class1", "class0/mirror", "class1/mirror")
    assert doubled.counts.tolist() == [2, 3, 2, 3]
    assert doubled.images[:5].equal(dataset.images)
    # The marked corner goes to the right.
    assert (doubled.images[5:, 0, 0, 1] == 255).all()
    assert not doubled.images[5:].equal(dataset.images)


def test_to() -> None:
    moved = make([1, 2]).to("cpu")
    assert moved.images.equal(make([1, 2]).images)
    assert moved.class_names == ("class0", "class1")


IMAGES = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
LABELS = torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (IMAGES[:, 0], LABELS, ("a", "b"), r"uint8 of shape \[3, 2, 2\].*images alone"),
        ({"x": IMAGES}, LABELS, ("a", "b"), "x are uint8"),
        ({}, LABELS, ("a", "b"), "an empty mapping"),
        (IMAGES.to(torch.complex64), LABELS, ("a", "b"), "complex64.*must be real"),
        ({"x": IMAGES.float(), "y": LABELS[:2]}, LABELS, ("a", "b"), "2 examples have labels"),
        (IMAGES, LABELS[:2], ("a", "b"), "3 images have labels of shape"),
        (IMAGES, LABELS.flip(0), ("a", "b"), "labels must be in ascending order"),
        (IMAGES, LABELS - 1, ("a", "b"), "smallest label is -1"),
        (IMAGES, LABELS.float(), ("a", "b"), r"labels are torch\.float32"),
        (IMAGES, LABELS, ("a",), "largest label is 1 but there are 1 class names"),
        (IMAGES, LABELS, ("a", "b", "c"), "class 'c' has no images"),
        (IMAGES.float(), LABELS, ("a", "b", "c"), "class 'c' has no examples"),
        (IMAGES, LABELS, ("a", "a"), r"not: \['a'\]"),
    ],
)
def test_what_does_not_fit(images: Any, labels: Any, names: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClassDataset(images, labels, names)


def of_any_kind() -> ClassDataset:
    """Example ``i`` has the token ids ``i`` and the feature ``-i``."""
    number = torch.arange(6)
    inputs = {"ids": number[:, None].expand(6, 4), "mask": torch.ones(6, 4).bool()}
    inputs["features"] = -number[:, None].double()
    return ClassDataset.from_labels(inputs, torch.tensor([0, 1, 0, 1, 2, 2]), ("a", "b", "c"))


def test_inputs_by_name_stay_together() -> None:
    dataset = of_any_kind()
    assert isinstance(dataset.inputs, dict)
    assert (
        dataset.inputs["ids"][:, 0].tolist()
        == [0, 2, 1, 3, 4, 5]
        == (-dataset.inputs["features"][:, 0]).tolist()
    )
    for classes in ([2, 0], [1, 2]):
        chosen = dataset.select(classes).to("cpu")
        assert isinstance(chosen.inputs, dict)
        rows = torch.cat([(dataset.labels == c).nonzero()[:, 0] for c in classes])
        assert all(chosen.inputs[name].equal(x[rows]) for name, x in dataset.inputs.items())
    parts = Splits.consecutive(dataset, (1, 1, 1))
    again = parts.joined()
    assert isinstance(again.inputs, dict)
    assert all(again.inputs[name].equal(x) for name, x in dataset.inputs.items())
    assert repr(dataset) == (
        "ClassDataset(3 classes, 2 examples each, 6 in all, ids [4] int64 on cpu, "
        "mask [4] bool on cpu, features [1] float64 on cpu)"
    )


def test_what_is_no_image_has_no_images() -> None:
    for convert in (
        lambda: of_any_kind().images,
        of_any_kind().with_rotations,
        lambda: of_any_kind().with_channels(3),
    ):
        with pytest.raises(DataError, match=r"images are asked for, .* 3 classes"):
            convert()


def test_splits() -> None:
    parts = [make([2], prefix) for prefix in "abc"]
    assert [name for name, _ in Splits(*parts)] == ["train", "validation", "test"]
    assert [dataset for _, dataset in Splits(*parts)] == parts


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [("aab", "in both train and validation"), ("aba", "train and test"), ("abb", "validation and")],
)
def test_splits_are_disjoint(prefixes: str, message: str) -> None:
    with pytest.raises(DataError, match=f"class '[ab]0' is .*{message}"):
        Splits(*(make([2], prefix) for prefix in prefixes))


def test_grey_and_colour_are_made_of_each_other() -> None:
    """Colours become the grey that Pillow makes of them; grey ones come back as they were."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (3, 3, 40, 50), generator=generator, dtype=torch.uint8)
    dataset = ClassDataset.from_counts(colours, {"a": 1, "b": 2})
    grey = dataset.with_channels(1)
    for own, rgb in zip(grey.images, colours, strict=True):
        expected = Image.fromarray(rgb.permute(1, 2, 0).numpy()).convert("L")
        assert torch.equal(own[0], torch.from_numpy(np.array(expected)))
    back = grey.with_channels(3)
    assert back.images.shape == colours.shape
    assert torch.equal(back.with_channels(1).images, grey.images)
    assert (back.labels.tolist(), back.class_names) == ([0, 1, 1], ("a", "b"))
    assert dataset.with_channels(3) is dataset
    with pytest.raises(DataError, match="3 channels cannot be converted to 4"):
        dataset.with_channels(4)


def test_joined_splits() -> None:
    parts = make([2, 1], "a"), make([3], "b"), make([1, 2], "c")
    joined = Splits(*parts).joined()
    assert joined.class_names == ("a0", "a1", "b0", "c0", "c1")
    assert joined.counts.tolist() == [2, 1, 3, 1, 2]
    assert torch.equal(joined.images, torch.cat([part.images for part in parts]))
