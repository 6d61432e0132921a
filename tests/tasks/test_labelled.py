"""Data sets of torchvision and Hugging Face in memory, and the division of classes."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.interop import from_arrays
from fewshot_blo.tasks.labelled import divide, from_hugging_face, from_torchvision
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

BYTES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = [2, 0, 1, 0, 2, 2]
ORDER = [1, 3, 2, 0, 4, 5]
CHANNELS_FIRST = torch.from_numpy(BYTES).permute(0, 3, 1, 2)


class Items:
    """A data set of items, as torchvision's are."""

    def __init__(self, images: Any, labels: Any, classes: Any = None) -> None:
        self.images, self.labels = list(images), list(labels)
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        return self.images[number], self.labels[number]


@pytest.mark.parametrize("labels", [LABELS, np.array(LABELS), torch.tensor(LABELS)])
@pytest.mark.parametrize(
    "images",
    [
        [Image.fromarray(pixels) for pixels in BYTES],
        BYTES,
        CHANNELS_FIRST,
        CHANNELS_FIRST.float() / 255,
    ],
    ids=["pillow", "array", "tensor", "float"],
)
def test_items_of_every_kind(images: Any, labels: Any) -> None:
    dataset = from_torchvision(Items(images, labels, ["x", "y", "z", "empty"]))
    assert dataset.class_names == ("x", "y", "z")
    assert dataset.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert dataset.images.equal(CHANNELS_FIRST[ORDER])


def test_it_is_from_arrays_of_the_same(own_cache_home: Any) -> None:
    found = from_torchvision(Items(BYTES, LABELS))
    expected = from_arrays(BYTES, LABELS)
    assert found.class_names == expected.class_names
    assert found.images.equal(expected.images)


def test_data_sets_of_torchvision() -> None:
    datasets = torchvision_module().datasets
    fake = datasets.FakeData(size=7, image_size=(3, 6, 6), num_classes=3)
    found = from_torchvision(fake)
    for place, name in enumerate(found.class_names):
        own = [np.asarray(image) for image, label in fake if int(label) == int(name)]
        rows = found.images[found.labels == place]
        np.testing.assert_array_equal(rows.permute(0, 2, 3, 1).numpy(), np.stack(own))
    whole: Any = Items(BYTES, LABELS, ["x", "y", "z"])
    subset: Any = torch.utils.data.Subset(whole, [0, 2, 3])
    part = from_torchvision(subset, size=3, color=False)
    assert part.class_names == ("x", "y", "z")
    assert part.images.shape == (3, 1, 3, 3)
    assert from_torchvision(Items(BYTES[..., 0], LABELS)).images.shape == (6, 1, 5, 4)


def test_items_that_are_only_iterated() -> None:
    dataset = from_torchvision(iter(list(zip(BYTES, LABELS, strict=True))))
    assert dataset.images.equal(CHANNELS_FIRST[ORDER])


def test_names_of_torchvision() -> None:
    folder = Items(BYTES, ["b", "a", "a", "b", "b", "b"])
    assert from_torchvision(folder).class_names == ("a", "b")
    synonyms = Items(BYTES, LABELS, [("tench", "Tinca tinca"), ("crane",), ("crane", "bird")])
    assert from_torchvision(synonyms).class_names == ("tench, Tinca tinca", "crane", "crane, bird")
    ten = Items(BYTES, [10, 9, 2, 2, 2, 2])
    assert from_torchvision(ten).class_names == ("2", "9", "10")
    assert from_torchvision(ten, names=list("abcdefghijk")).class_names == ("c", "j", "k")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Items([], []), "has no images"),
        (Items(BYTES, [0.5] * 6), "item 0: the label is '0.5': it must be an integer or text"),
        (Items(BYTES, [(1, 2)] * 6), r"item 0: the label is '\(1, 2\)'"),
        (Items(BYTES, torch.zeros(6, 9)), r"item 0: the label is 'tensor\(\["),
        (Items(BYTES, [0, -1, 0, 0, 0, 0]), "item 1 has no class .its label is -1.: leave out"),
        (Items(BYTES, [0, 3, 0, 0, 0, 0], ["x", "y"]), "item 1: the label is 3, but there are 2"),
        (Items([BYTES[0], BYTES[1][:3]], [0, 1]), "item 1 has 4 x 3 pixels, .* 4 x 5: set size"),
        (Items([CHANNELS_FIRST[0].float()], [0]), "image of item 0 cannot be decoded"),
        (Items(["absent.png"], [0]), "there is no image of item 0"),
        (list(range(3)), "item 0 is a int: items must be"),
        (Items(BYTES, LABELS, ["x", "y", "x"]), "unique"),
    ],
)
def test_what_does_not_fit(dataset: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_torchvision(dataset)


def test_size_must_be_positive() -> None:
    with pytest.raises(DataError, match="size is 0"):
        from_torchvision(Items(BYTES, LABELS), size=0)


def hub(splits: bool = False, **columns: Any) -> Any:
    """A data set of the library datasets."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    try:
        datasets: Any = __import__("datasets")
    except ImportError as error:
        pytest.skip(f"datasets cannot be imported: {error}")
    features = {
        "img": datasets.Image(),
        "fine_label": datasets.ClassLabel(names=["x", "y", "z", "empty"]),
        "note": datasets.Value("string"),
    }
    content = {
        "img": [Image.fromarray(pixels) for pixels in BYTES],
        "fine_label": LABELS,
        "note": ["a"] * 6,
    }
    whole = datasets.Dataset.from_dict(content, features=datasets.Features(features))
    if not splits:
        return whole
    return datasets.DatasetDict({"train": whole.select([0, 1, 2]), "test": whole.select([3, 4, 5])})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["whole", "splits", "formatted", "streamed", "encoded"])
def test_data_sets_of_hugging_face(kind: str) -> None:
    dataset = hub(splits=kind == "splits")
    if kind == "formatted":
        dataset = dataset.with_format("numpy")
    if kind == "streamed":
        dataset = dataset.to_iterable_dataset()
    if kind == "encoded":
        image = sys.modules["datasets"].Image(decode=False)
        dataset = dataset.cast_column("img", image)
    found = from_hugging_face(dataset)
    assert found.class_names == ("x", "y", "z")
    assert found.images.equal(CHANNELS_FIRST[ORDER])
    assert from_hugging_face(dataset, size=3, color=False).images.shape == (6, 1, 3, 3)
    by_note = from_hugging_face(dataset, label="note")
    assert by_note.class_names == ("a",)
    with pytest.raises(DataError, match="the data set has no column 'label'; its columns are img"):
        from_hugging_face(dataset, label="label")


def test_a_data_set_of_hugging_face_must_say_its_features() -> None:
    with pytest.raises(DataError, match="does not say its features"):
        from_hugging_face(SimpleNamespace(features=None))
    with pytest.raises(DataError, match="has no splits"):
        from_hugging_face({})


DATASET = from_arrays(BYTES, LABELS, names=["x", "y", "z"])


def test_division_by_fractions_and_by_lists() -> None:
    splits = divide(DATASET, seed=3)
    assert sorted(splits.joined().class_names) == ["x", "y", "z"]
    assert len({divide(DATASET, seed=seed).train.class_names for seed in range(20)}) == 3
    splits = divide(DATASET, lists=[["z"], ["x"], ["y"]])
    assert [part.class_names for _, part in splits] == [("z",), ("x",), ("y",)]
    assert splits.notes == ()
    six = from_arrays(BYTES, range(6), names=list("abcdef"))
    part = divide(six, lists=[["f", "a"], ["c"], ["d"]])
    assert part.train.class_names == ("f", "a")
    assert part.train.images.equal(six.select([5, 0]).images)
    assert part.notes == ("2 classes passed over, which lists leave out",)
    numbers = [len(part.class_names) for _, part in divide(six, fractions=(0.5, 0.2, 0.3))]
    assert numbers == [3, 1, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lists": [["x"], ["y"]]}, "there are 2 lists: give three"),
        ({"lists": [["x"], ["y"], []]}, "lists has no class in test"),
        ({"lists": [["x"], ["y"], ["w"]]}, "class 'w' of lists is not in the data set"),
        ({"lists": [["x"], ["x"], ["z"]]}, "class 'x' is in both train and validation"),
        ({"fractions": (0.5, 0.2, 0.2)}, "three positive numbers that sum to 1"),
    ],
)
def test_divisions_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        divide(DATASET, **given)


def test_a_division_needs_three_classes_and_a_seed() -> None:
    with pytest.raises(DataError, match="there are 2 classes: at least 3 are needed"):
        divide(DATASET.select([0, 1]))
    with pytest.raises(ConfigurationError, match="seed is -1"):
        divide(DATASET, seed=-1)
