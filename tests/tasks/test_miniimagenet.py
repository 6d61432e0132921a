from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_blo.tasks import miniimagenet
from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_lists import SPLITS

PER_CLASS = 3
CLASSES = {split: miniimagenet.PUBLISHED.classes(split) for split in SPLITS}


def pixels(label: str, position: int) -> np.ndarray:
    """An image of one colour, so that JPEG and resizing hardly change it."""
    rng = np.random.default_rng((int(label[1:]), position))
    return np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (84, 84, 3))


def save(path: Path, label: str, position: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(pixels(label, position)[:10, :12])).save(path, quality=100)


def write_folders(root: Path) -> None:
    for split, labels in CLASSES.items():
        for label in labels:
            for position in range(PER_CLASS):
                save(root / split / label / f"{position}.jpg", label, position)


def write_csv(root: Path, nested: bool = False) -> None:
    for split, labels in CLASSES.items():
        lines = ["filename,label"]
        for position in range(PER_CLASS):  # the classes take turns
            for label in labels:
                name = f"{label}{position:08d}.jpg"
                save(root / "images" / (label if nested else "") / name, label, position)
                lines.append(f"{name},{label}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")


def write_nested_csv(root: Path) -> None:
    write_csv(root, nested=True)


def write_pickles(root: Path, validation: str = "val") -> None:
    for split, labels in CLASSES.items():
        content = {
            "image_data": np.stack([pixels(n, k) for k in range(PER_CLASS) for n in labels]),
            "class_dict": {
                label: list(range(at, PER_CLASS * len(labels), len(labels)))
                for at, label in enumerate(labels)
            },
        }
        name = validation if split == "val" else split
        path = root / f"mini-imagenet-cache-{name}.pkl"
        path.write_bytes(pickle.dumps(content, protocol=2))


def write_other_pickles(root: Path) -> None:
    write_pickles(root, "validation")


Writer = Callable[[Path], None]
WRITERS = [write_folders, write_csv, write_nested_csv, write_pickles, write_other_pickles]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, own_cache_home: Path) -> None:
    """A data set of as many images as the fixtures have, and a cache folder of its own."""
    images = {split: PER_CLASS * len(labels) for split, labels in CLASSES.items()}
    published = replace(miniimagenet.PUBLISHED, images=images)
    monkeypatch.setattr(miniimagenet, "PUBLISHED", published)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "mini"
    folder.mkdir()
    return folder


def assert_complete(dataset: ClassDataset, split: str) -> None:
    assert list(dataset.class_names) == sorted(CLASSES[split])
    assert dataset.counts.tolist() == [PER_CLASS] * len(CLASSES[split])
    for row in range(0, len(dataset), 7):
        label = dataset.class_names[dataset.labels[row]]
        expected = torch.from_numpy(np.array(pixels(label, row % PER_CLASS)[0, 0]))
        difference = dataset.images[row].int() - expected[:, None, None].int()
        assert difference.abs().max() <= 3


@pytest.mark.parametrize("write", WRITERS)
def test_layouts_give_the_same_data_set(root: Path, write: Writer) -> None:
    write(root)
    splits = miniimagenet.load(root, size=8)
    for split, (_, dataset) in zip(SPLITS, splits, strict=True):
        assert dataset.images.shape[1:] == (3, 8, 8)
        assert_complete(dataset, split)


def test_pickled_images_keep_their_pixels(root: Path) -> None:
    write_pickles(root)
    path = root / "mini-imagenet-cache-val.pkl"
    content = pickle.loads(path.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, content["image_data"].shape, dtype=np.uint8)
    path.write_bytes(pickle.dumps(content | {"image_data": noise}))
    dataset = miniimagenet.load(root).validation
    positions = content["class_dict"][dataset.class_names[5]]
    expected = torch.from_numpy(noise[positions]).permute(0, 3, 1, 2)
    assert dataset.images[dataset.labels == 5].equal(expected)


def test_published_class_lists() -> None:
    assert [len(CLASSES[split]) for split in SPLITS] == [64, 16, 20]
    assert len({label for labels in CLASSES.values() for label in labels}) == 100


def test_missing_class_and_images(root: Path) -> None:
    write_folders(root)
    lost = CLASSES["test"][4]
    shutil.rmtree(root / "test" / lost)
    with pytest.raises(DataError, match=f"test lacks 1 of 20 classes: {lost}; .* set partial"):
        miniimagenet.load(root, size=8)
    assert len(miniimagenet.load(root, size=8, partial=True).test.class_names) == 19
    # What partial=True has left in the cache must not pass for complete.
    with pytest.raises(DataError, match=f"lacks 1 of 20 classes: {lost}"):
        miniimagenet.load(root, size=8)


def test_missing_images(root: Path) -> None:
    write_folders(root)
    (root / "val" / CLASSES["val"][0] / "1.jpg").unlink()
    with pytest.raises(DataError, match="val has 47 images instead of 48"):
        miniimagenet.load(root, size=8)
    assert miniimagenet.load(root, size=8, partial=True).validation.counts[0] == PER_CLASS - 1


@pytest.mark.parametrize(
    ("name", "owner"), [(CLASSES["test"][0], "belongs to test"), ("cat", "in none of its splits")]
)
def test_foreign_class(root: Path, name: str, owner: str) -> None:
    write_folders(root)
    save(root / "train" / name / "0.jpg", CLASSES["train"][0], 0)
    with pytest.raises(DataError, match=rf"class {name} is not among the 64 train.*{owner}"):
        miniimagenet.load(root, size=8, partial=True)


def test_corrupt_image_is_named_and_nothing_is_left(root: Path, own_cache_home: Path) -> None:
    write_folders(root)
    broken = root / "test" / CLASSES["test"][3] / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=f"{broken.parent.name}/2.jpg"):
        miniimagenet.load(root, size=8)
    assert not list(own_cache_home.rglob("*test*"))
    assert not list(own_cache_home.rglob("*.tmp"))


def test_no_layout(root: Path) -> None:
    with pytest.raises(DataError, match="none of the layouts"):
        miniimagenet.load(root)
    with pytest.raises(DataError, match="absent has none of the layouts"):
        miniimagenet.load(root / "absent")


@pytest.mark.parametrize("size", [0, -84])
def test_size_must_be_positive(root: Path, size: int) -> None:
    write_pickles(root)
    with pytest.raises(DataError, match=f"size is {size}"):
        miniimagenet.load(root, size=size)


@pytest.mark.parametrize(
    ("write", "lost"),
    [
        (write_folders, "val"),
        (write_csv, "test.csv"),
        (write_csv, "images"),
        (write_pickles, "mini-imagenet-cache-val.pkl"),
    ],
)
def test_missing_part(root: Path, write: Writer, lost: str) -> None:
    write(root)
    (root / lost).rename(root / "elsewhere")
    with pytest.raises(DataError, match=lost):
        miniimagenet.load(root, size=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.jpg,n01532829\n", "no column 'filename'"),
        ("filename,label\nabsent.jpg,n01532829\n", "1 images of .* the first is absent.jpg"),
        ("filename,label\n../train.csv,n01532829\n", "must not contain a path"),
        ("filename,label\ntrain.csv,..\n", "must not contain a path"),
        ("filename,label\n/etc/hostname,n01532829\n", "must not contain a path"),
        ("filename,label\na.jpg\n", "must not contain a path"),
        ("filename,label\na.jpg,n01532829\na.jpg,n01532829\n", "lists a.jpg twice"),
        ("filename,label\n", "train has no classes"),
        ("filename,label\n\xff", "cannot be read"),
    ],
)
def test_bad_csv(root: Path, text: str, message: str) -> None:
    write_csv(root)
    (root / "train.csv").write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=message):
        miniimagenet.load(root, size=8, partial=True)


IMAGES = np.zeros((4, 84, 84, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_data": IMAGES}, "no key 'class_dict'"),
        ({"image_data": IMAGES / 2, "class_dict": {}}, "not a uint8 array"),
        ({"image_data": IMAGES[..., :2], "class_dict": {}}, "not a uint8 array"),
        ({"image_data": IMAGES, "class_dict": []}, "not a dictionary"),
        ({"image_data": IMAGES, "class_dict": {"n01532829": [0.5]}}, "not a list of image indices"),
        ({"image_data": IMAGES, "class_dict": {"n01532829": [4]}}, "outside the 4 images"),
        ({"image_data": IMAGES, "class_dict": {"n01532829": [-1]}}, "outside the 4 images"),
        ({"image_data": IMAGES, "class_dict": {"n01532829": [1, 1]}}, "occur twice"),
        ({"image_data": IMAGES, "class_dict": {"n01532829": []}}, "not a list of image indices"),
        ({"image_data": IMAGES, "class_dict": {"n01532829": print}}, "is refused"),
    ],
)
def test_bad_pickle(root: Path, content: object, message: str) -> None:
    write_pickles(root)
    (root / "mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        miniimagenet.load(root, partial=True)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("fewshot_blo.tasks.reading.decoded.write_decoded", fail)


@pytest.mark.parametrize("write", [write_folders, write_pickles])
def test_decoded_once(root: Path, write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root)
    before = sorted(root.rglob("*"))
    first = miniimagenet.load(root, size=8)
    assert sorted(root.rglob("*")) == before
    forbid_decoding(monkeypatch)
    for (_, a), (_, b) in zip(first, miniimagenet.load(root, size=8), strict=True):
        assert a.images.equal(b.images)
        assert a.class_names == b.class_names
    with pytest.raises(AssertionError, match="decoded again"):
        miniimagenet.load(root, size=9)


def test_cache_follows_its_source(root: Path, own_cache_home: Path) -> None:
    write_folders(root)
    before = miniimagenet.load(root, size=8).train
    label = CLASSES["train"][0]
    save(root / "train" / label / "0.jpg", CLASSES["train"][1], 9)
    after = miniimagenet.load(root, size=8).train
    assert not after.images[0].equal(before.images[0])
    assert after.images[1:].equal(before.images[1:])
    assert len(list(own_cache_home.rglob("*train*"))) == 2


@pytest.mark.parametrize("suffix", ["bin", "json"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b""])
def test_damaged_cache_is_rebuilt(
    root: Path, own_cache_home: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    write_pickles(root)
    first = miniimagenet.load(root, size=8).test.images.clone()
    (file,) = own_cache_home.rglob(f"miniimagenet-test-8px.{suffix}")
    file.write_bytes(damage(file.read_bytes()))
    assert miniimagenet.load(root, size=8).test.images.equal(first)


def test_two_folders_have_two_caches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pickles(root)
    other = root.parent / "other" / root.name
    other.mkdir(parents=True)
    write_csv(other)
    first = miniimagenet.load(root, size=8)
    miniimagenet.load(other, size=8)
    forbid_decoding(monkeypatch)
    assert miniimagenet.load(root, size=8).test.images.equal(first.test.images)


def test_files_of_two_writings_are_not_mixed(root: Path, own_cache_home: Path) -> None:
    write_folders(root)
    miniimagenet.load(root, size=8)
    (description,) = own_cache_home.rglob("miniimagenet-train-8px.json")
    old = description.read_bytes()
    image = root / "train" / CLASSES["train"][0] / "0.jpg"
    content, state = image.read_bytes(), image.stat()
    save(image, CLASSES["train"][1], 9)
    after = miniimagenet.load(root, size=8).train.images.clone()
    # As if that had been stopped between the two files, and the image were restored since.
    description.write_bytes(old)
    image.write_bytes(content)
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not miniimagenet.load(root, size=8).train.images[0].equal(after[0])


def test_nowhere_to_keep_decoded_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pickles(root)
    file = root.parent / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(DataError, match=r"cannot be written to .*XDG_CACHE_HOME"):
        miniimagenet.load(root, size=8)


def test_links_that_leave_the_folder_are_followed(root: Path) -> None:
    write_folders(root)
    moved = CLASSES["test"][4]
    (root / "test" / moved).rename(root.parent / moved)
    (root / "test" / moved).symlink_to(root.parent / moved)
    assert moved in miniimagenet.load(root, size=8).test.class_names


def test_images_can_be_written_to_without_touching_the_cache(root: Path) -> None:
    write_pickles(root)
    images = miniimagenet.load(root, size=8).test.images
    kept = images.clone()
    images.zero_()
    assert miniimagenet.load(root, size=8).test.images.equal(kept)
