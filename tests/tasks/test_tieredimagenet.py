from __future__ import annotations

import pickle
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_blo.tasks import tieredimagenet
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_lists import SPLITS

PER_CLASS = 2
CLASSES = {split: tieredimagenet.PUBLISHED.classes(split) for split in SPLITS}
SIDE = 4


def pixels(label: str, position: int) -> np.ndarray:
    seed = int.from_bytes(label.encode(), "little")
    return np.random.default_rng((seed, position)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def png(label: str, position: int) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels(label, position)).save(stream, "PNG")
    return stream.getvalue()


def write_folders(root: Path) -> None:
    for split, labels in CLASSES.items():
        for label in labels:
            folder = root / split / label
            folder.mkdir(parents=True)
            for position in range(PER_CLASS):
                (folder / f"{position}.png").write_bytes(png(label, position))


def write_pickles(root: Path, *, words: bool = True, as_bytes: bool = False) -> None:
    """As published: PNG files as arrays ``[bytes, 1]``; the classes of neighbours differ."""
    for split, labels in CLASSES.items():
        names = [f"{split} thing {n}, thing" for n in range(len(labels))] if words else labels
        images = [
            np.frombuffer(png(name, position), np.uint8)[:, None]
            for position in range(PER_CLASS)
            for name in names
        ]
        content: dict[Any, Any] = {
            "label_specific": np.tile(np.arange(len(labels)), PER_CLASS),
            "label_specific_str": names,
            "label_general": np.zeros(len(images), dtype=np.int64),
            "label_general_str": ["everything"],
        }
        if as_bytes:
            content = {key.encode(): value for key, value in content.items()}
            content[b"label_specific_str"] = [name.encode() for name in names]
        (root / f"{split}_images_png.pkl").write_bytes(pickle.dumps(images, protocol=2))
        (root / f"{split}_labels.pkl").write_bytes(pickle.dumps(content, protocol=2))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, own_cache_home: Path) -> None:
    images = {split: PER_CLASS * len(labels) for split, labels in CLASSES.items()}
    published = replace(tieredimagenet.PUBLISHED, images=images)
    monkeypatch.setattr(tieredimagenet, "PUBLISHED", published)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tiered"
    folder.mkdir()
    return folder


def assert_complete(root: Path, expected: dict[str, list[str]]) -> None:
    for split, (_, dataset) in zip(SPLITS, tieredimagenet.load(root, size=SIDE), strict=True):
        assert list(dataset.class_names) == sorted(expected[split])
        assert dataset.counts.tolist() == [PER_CLASS] * len(expected[split])
        for row, image in enumerate(dataset.images):
            label = dataset.class_names[dataset.labels[row]]
            original = torch.from_numpy(pixels(label, row % PER_CLASS)).permute(2, 0, 1)
            assert image.equal(original)


def test_published_class_lists() -> None:
    assert [len(CLASSES[split]) for split in SPLITS] == [351, 97, 160]
    assert len({label for labels in CLASSES.values() for label in labels}) == 608


def test_folders(root: Path) -> None:
    write_folders(root)
    assert_complete(root, CLASSES)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_pickles_with_classes_in_words(root: Path, as_bytes: bool) -> None:
    write_pickles(root, as_bytes=as_bytes)
    words = {
        split: [f"{split} thing {n}, thing" for n in range(len(labels))]
        for split, labels in CLASSES.items()
    }
    assert_complete(root, words)


def test_pickles_with_synsets_a_folder_deeper(root: Path) -> None:
    (root / "tiered-imagenet").mkdir()
    write_pickles(root / "tiered-imagenet", words=False)
    assert_complete(root, CLASSES)


def test_images_are_mapped_not_held(root: Path, own_cache_home: Path) -> None:
    write_pickles(root)
    dataset = tieredimagenet.load(root, size=SIDE).train
    (file,) = own_cache_home.rglob(f"tieredimagenet-train-{SIDE}px.bin")
    assert dataset.images.is_contiguous()
    assert 0 <= file.stat().st_size - dataset.images.numel() < 100
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the memory map of a process is only visible on Linux")
    start = f"{dataset.images.data_ptr():x}-"
    assert any(
        line.startswith(start) and str(file) in line for line in maps.read_text().splitlines()
    )


def labels_of(root: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = pickle.loads((root / f"{split}_labels.pkl").read_bytes())
    return content


def test_number_of_classes_in_words_is_checked(root: Path) -> None:
    write_pickles(root)
    content = labels_of(root, "val")
    keep = content["label_specific"] != 5
    images = pickle.loads((root / "val_images_png.pkl").read_bytes())
    images = [image for image, kept in zip(images, keep, strict=True) if kept]
    content["label_specific"] = content["label_specific"][keep]
    (root / "val_labels.pkl").write_bytes(pickle.dumps(content))
    (root / "val_images_png.pkl").write_bytes(pickle.dumps(images))
    with pytest.raises(DataError, match="val has 96 classes instead of 97"):
        tieredimagenet.load(root, size=SIDE)
    assert len(tieredimagenet.load(root, size=SIDE, partial=True).validation.class_names) == 96


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_specific": np.zeros(3, np.int64)}, "has 702 images, but .* has 3 labels"),
        ({"label_specific": np.full(702, 351)}, "runs from 351 to 351.*names 351 classes"),
        ({"label_specific": np.zeros(702)}, "not a list of integers"),
        ({"label_specific_str": ["thing"] * 351}, "names a class twice"),
    ],
)
def test_bad_labels(root: Path, change: dict[str, Any], message: str) -> None:
    write_pickles(root)
    path = root / "train_labels.pkl"
    path.write_bytes(pickle.dumps(labels_of(root, "train") | change))
    with pytest.raises(DataError, match=message):
        tieredimagenet.load(root, size=SIDE)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.frombuffer(png("x", 0)[:50], np.uint8), r"image 7 of .*train_images_png\.pkl cannot"),
        ("text", r"image 7 of .*train_images_png\.pkl is not an array of bytes"),
        (None, r"image 7 of .*train_images_png\.pkl is not an array of bytes"),
    ],
)
def test_bad_image_is_named(root: Path, image: Any, message: str) -> None:
    write_pickles(root)
    path = root / "train_images_png.pkl"
    images = pickle.loads(path.read_bytes())
    images[7] = image
    path.write_bytes(pickle.dumps(images))
    with pytest.raises(DataError, match=message):
        tieredimagenet.load(root, size=SIDE)


def test_hostile_pickle_is_refused(root: Path) -> None:
    write_pickles(root)
    (root / "train_images_png.pkl").write_bytes(b"cbuiltins\neval\n(S'1'\ntR.")
    with pytest.raises(DataError, match=r"train_images_png\.pkl is refused.*builtins\.eval"):
        tieredimagenet.load(root, size=SIDE)


@pytest.mark.parametrize("lost", ["val_labels.pkl", "test_images_png.pkl"])
def test_missing_file(root: Path, lost: str) -> None:
    write_pickles(root)
    (root / lost).unlink()
    with pytest.raises(DataError, match=f"{lost} is missing"):
        tieredimagenet.load(root, size=SIDE)


def test_no_layout(root: Path) -> None:
    with pytest.raises(DataError, match="none of the layouts of tieredImageNet"):
        tieredimagenet.load(root)
