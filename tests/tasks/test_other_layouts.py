"""CIFAR-FS, FC100 and the subsets of ImageNet as other projects keep them."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import DataError, Splits, cifarfs, miniimagenet, tieredimagenet
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

ALPHABET = sorted(name for split in SPLITS for name in class_list("cifarfs", split))
PER_CLASS = 2
VARIANTS = ["cifarfs", "fc100"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, own_cache_home: Path) -> None:
    """Data sets of as many images as the fixtures have, and a cache folder of its own."""
    monkeypatch.setattr(cifarfs, "IMAGES_PER_CLASS", PER_CLASS)
    for module in (miniimagenet, tieredimagenet):
        images = {split: PER_CLASS * len(module.PUBLISHED.classes(split)) for split in SPLITS}
        monkeypatch.setattr(module, "PUBLISHED", replace(module.PUBLISHED, images=images))


def h5py() -> Any:
    return pytest.importorskip("h5py", reason="h5py is not installed")


def cifar(name: str) -> NDArray[np.uint8]:
    """Images ``[2, 32, 32, 3]`` of a class."""
    rng = np.random.default_rng(ALPHABET.index(name))
    return rng.integers(0, 256, (PER_CLASS, 32, 32, 3), dtype=np.uint8)


def write_r2d2(root: Path, variant: str = "cifarfs") -> None:
    lists = root / "cifar100" / "splits" / "bertinetto"
    lists.mkdir(parents=True)
    for split in SPLITS:
        (lists / f"{split}.txt").write_text("\n".join(class_list("cifarfs", split)) + "\n")
    for name in ALPHABET:
        folder = root / "cifar100" / "data" / name
        folder.mkdir(parents=True)
        for number, pixels in enumerate(cifar(name)):
            Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def write_metaoptnet(
    root: Path, variant: str = "cifarfs", number: Callable[[str], int] = ALPHABET.index
) -> None:
    prefix = {"cifarfs": "CIFAR_FS", "fc100": "FC100"}[variant]
    for split in SPLITS:
        names = class_list(variant, split)
        content = {
            "data": np.concatenate([cifar(name) for name in names]),
            "labels": [number(name) for name in names for _ in range(PER_CLASS)],
        }
        (root / f"{prefix}_{split}.pickle").write_bytes(pickle.dumps(content, protocol=2))


def write_torchmeta(root: Path, variant: str = "cifarfs") -> None:
    """As torchmeta/datasets/cifar100/base.py and cifar_fs.py write it; fc100.py writes no lists."""
    folder = root / "cifar100"
    (folder / "cifar-fs").mkdir(parents=True)
    with h5py().File(folder / "data.hdf5", "w") as file:
        for place, name in enumerate(ALPHABET):
            file.create_dataset(f"super{place // 5}/{name}", data=cifar(name))
    (folder / "fine_names.json").write_text(json.dumps({"super0": ALPHABET[:5]}))
    for split in SPLITS:
        listed = [[f"super{ALPHABET.index(n) // 5}", n] for n in class_list("cifarfs", split)]
        (folder / "cifar-fs" / f"{split}_labels.json").write_text(json.dumps(listed))


def assert_cifar(splits: Splits, variant: str) -> None:
    for split, (_, part) in zip(SPLITS, splits, strict=True):
        assert list(part.class_names) == class_list(variant, split)
        expected = np.concatenate([cifar(name) for name in part.class_names])
        np.testing.assert_array_equal(part.images.permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("write", [write_r2d2, write_metaoptnet, write_torchmeta])
def test_every_layout_of_cifar_gives_the_same_images(
    write: Callable[..., None], variant: Any, tmp_path: Path
) -> None:
    write(tmp_path, variant)
    for _ in range(2):  # Decoded, and from the cache.
        splits = cifarfs.load(tmp_path, variant=variant)
        assert_cifar(splits, variant)
        assert splits.notes == ()


def test_learn2learn_reads_the_same_files(tmp_path: Path) -> None:
    """The layouts are those that another program reads: its images and labels are ours."""
    torchvision_module()  # learn2learn imports it, and may find it broken.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of what learn2learn imports.
        l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    write_r2d2(tmp_path / "cifarfs")
    theirs = l2l.vision.datasets.CIFARFS(str(tmp_path), mode="test")
    ours = cifarfs.load(tmp_path).test
    for place, (image, label) in enumerate(theirs):
        name = theirs.classes[label]
        rows = ours.images[ours.labels == ours.class_names.index(name)]
        np.testing.assert_array_equal(np.asarray(image), rows[place % 2].permute(1, 2, 0).numpy())
    write_metaoptnet(tmp_path, "fc100")
    ours = cifarfs.load(tmp_path, variant="fc100").validation
    pickled = l2l.vision.datasets.FC100(str(tmp_path), mode="validation")
    for place, (image, label) in enumerate(pickled):
        name = ALPHABET[label]
        rows = ours.images[ours.labels == ours.class_names.index(name)]
        np.testing.assert_array_equal(np.asarray(image), rows[place % 2].permute(1, 2, 0).numpy())


def test_numbers_that_are_not_those_of_cifar_stay_numbers(tmp_path: Path) -> None:
    order = [name for split in SPLITS for name in class_list("cifarfs", split)]
    write_metaoptnet(tmp_path, number=order.index)
    splits = cifarfs.load(tmp_path)
    assert splits.train.class_names == tuple(map(str, range(64)))
    assert splits.test.class_names == tuple(map(str, range(80, 100)))
    assert splits.notes == cifarfs.load(tmp_path).notes
    assert "classes are called by their numbers" in splits.notes[0]
    expected = np.concatenate([cifar(name) for name in class_list("cifarfs", "test")])
    np.testing.assert_array_equal(splits.test.images.permute(0, 2, 3, 1).numpy(), expected)


def other_list(root: Path) -> None:
    write_r2d2(root)
    (root / "cifar100/splits/bertinetto/val.txt").write_text("apple\n")


def other_size(root: Path) -> None:
    write_r2d2(root)
    Image.new("RGB", (16, 16)).save(root / "cifar100/data/apple/000.png")


def class_folder_missing(root: Path) -> None:
    write_r2d2(root)
    (root / "cifar100/data/apple").rename(root / "cifar100/apple")


def pickle_missing(root: Path) -> None:
    write_metaoptnet(root)
    (root / "CIFAR_FS_val.pickle").unlink()


def pickle_of(**changes: Any) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        write_metaoptnet(root)
        file = root / "CIFAR_FS_val.pickle"
        file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes()) | changes, protocol=2))

    return damage


def pickle_without_labels(root: Path) -> None:
    write_metaoptnet(root)
    (root / "CIFAR_FS_val.pickle").write_bytes(pickle.dumps({"data": [1]}))


def pickle_of_code(root: Path) -> None:
    write_metaoptnet(root)
    (root / "CIFAR_FS_val.pickle").write_bytes(pickle.dumps({"data": Path, "labels": [0]}))


def hdf5_of_text(root: Path) -> None:
    write_torchmeta(root)
    (root / "cifar100/data.hdf5").write_text("no HDF5")


def hdf5_of_floats(root: Path) -> None:
    write_torchmeta(root)
    with h5py().File(root / "cifar100/data.hdf5", "a") as file:
        del file["super0/apple"]
        file["super0/apple"] = np.zeros((2, 32, 32, 3))


def foreign_labels(root: Path) -> None:
    write_torchmeta(root)
    (root / "cifar100/cifar-fs/val_labels.json").write_text('[["fish", "sardine"]]')


def labels_of_text(root: Path) -> None:
    write_torchmeta(root)
    (root / "cifar100/cifar-fs/val_labels.json").write_text("[[3")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_list, r"val\.txt does not list the published classes of cifarfs"),
        (other_size, r"apple/000\.png has 16 x 16 pixels instead of 32 x 32"),
        (class_folder_missing, "1 classes are missing, the first is apple"),
        (pickle_missing, r"CIFAR_FS_val\.pickle is missing: put it beside CIFAR_FS_train\.pickle"),
        (pickle_of(labels=[0] * 32), "has 1 classes instead of 16"),
        (pickle_of(labels=[0.5] * 32), "must be one integer per image"),
        (pickle_of(labels=[0]), r"labels are int64 of shape \[1\] for 32 images"),
        (pickle_of(data=np.zeros((32, 3072), np.uint8)), "data is not a uint8 array"),
        (pickle_of(data=np.zeros((32, 8, 8, 3), np.uint8)), r"it must be \[images, 32, 32, 3\]"),
        (pickle_without_labels, r"CIFAR_FS_val\.pickle has no key 'labels'"),
        (pickle_of_code, r"CIFAR_FS_val\.pickle is refused"),
        (hdf5_of_text, r"data\.hdf5 cannot be read as HDF5"),
        (hdf5_of_floats, "class 'apple' is float64 of shape"),
        (foreign_labels, r"val_labels\.json does not list the published classes"),
        (labels_of_text, r"val_labels\.json cannot be read as a JSON list of class names"),
    ],
)
def test_what_is_wrong_is_named(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        cifarfs.load(tmp_path)
    assert "\n" not in str(error.value)


def test_without_h5py_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_torchmeta(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigurationError, match=r"needs h5py: pip install '\.\[formats\]'"):
        cifarfs.load(tmp_path)


def synset(name: str) -> NDArray[np.uint8]:
    """Images ``[2, 84, 84, 3]`` of a class of ImageNet, each of one colour."""
    colors = np.random.default_rng(int(name[1:])).integers(0, 256, (PER_CLASS, 1, 1, 3), np.uint8)
    return np.broadcast_to(colors, (PER_CLASS, 84, 84, 3)).copy()


def numbered(names: list[str]) -> dict[str, int]:
    return {name: 7 * place + 3 for place, name in enumerate(names)}


def mini_metaoptnet(root: Path, named: bool = True) -> None:
    phases = ["train_phase_train", "val", "test"]
    every = numbered([n for split in SPLITS for n in class_list("miniimagenet", split)])
    for split, phase in zip(SPLITS, phases, strict=True):
        names = class_list("miniimagenet", split)
        content: dict[str, Any] = {
            "data": np.concatenate([synset(name) for name in names]),
            "labels": [every[name] for name in names for _ in range(PER_CLASS)],
        }
        if named:
            content["catname2label"] = {name: every[name] for name in names}
        file = root / f"miniImageNet_category_split_{phase}.pickle"
        file.write_bytes(pickle.dumps(content, protocol=2))


def mini_torchmeta(root: Path) -> None:
    """As torchmeta/datasets/miniimagenet.py writes it."""
    (root / "miniimagenet").mkdir()
    for split in SPLITS:
        names = class_list("miniimagenet", split)
        with h5py().File(root / "miniimagenet" / f"{split}_data.hdf5", "w") as file:
            group = file.create_group("datasets")
            for name in names:
                group.create_dataset(name, data=synset(name))
        (root / "miniimagenet" / f"{split}_labels.json").write_text(json.dumps(sorted(names)))


def mini_r2d2(root: Path) -> None:
    lists = root / "miniimagenet" / "splits" / "ravi-larochelle"
    lists.mkdir(parents=True)
    for split in SPLITS:
        names = class_list("miniimagenet", split)
        (lists / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            folder = root / "miniimagenet" / "data" / name
            folder.mkdir(parents=True)
            for number, pixels in enumerate(synset(name)):
                Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=100)


@pytest.mark.parametrize("write", [mini_metaoptnet, mini_torchmeta, mini_r2d2])
def test_every_layout_of_miniimagenet_gives_the_same_images(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path)
    splits = miniimagenet.load(tmp_path, size=8, progress=False)
    assert splits.notes == ()
    for split, (_, part) in zip(SPLITS, splits, strict=True):
        assert list(part.class_names) == sorted(class_list("miniimagenet", split))
        expected = np.concatenate([synset(name)[:, :8, :8] for name in part.class_names])
        found = part.images.permute(0, 2, 3, 1).numpy()
        assert np.abs(found.astype(int) - expected).max() <= (3 if write is mini_r2d2 else 0)


def test_classes_without_names_have_numbers(tmp_path: Path) -> None:
    mini_metaoptnet(tmp_path, named=False)
    further = tmp_path / "miniImageNet_category_split_train_phase_val.pickle"
    further.write_bytes(b"not read")
    splits = miniimagenet.load(tmp_path, size=8, progress=False)
    assert len(splits.train.class_names) == 64
    assert splits.validation.class_names[0].isdigit()
    assert splits.notes == (
        f"the pickles in {tmp_path} have no catname2label: classes have their numbers",
        f"{further.name} not read: further images of the training classes",
    )


def test_tieredimagenet_of_torchmeta(tmp_path: Path) -> None:
    """As torchmeta/datasets/tieredimagenet.py writes it: the bytes of a file for each image."""
    root = tmp_path / "tieredimagenet"
    root.mkdir()
    expected = {}
    for split in SPLITS:
        names = [f"{split} class {n}" for n in range(len(class_list("tieredimagenet", split)))]
        with h5py().File(root / f"{split}_data.hdf5", "w") as file:
            group = file.create_group("datasets")
            for place, name in enumerate(names):
                kind = h5py().special_dtype(vlen=np.uint8)
                dataset = group.create_dataset(name, (PER_CLASS,), dtype=kind)
                expected[name] = np.full((PER_CLASS, 3, 4, 4), place % 256, np.uint8)
                for number in range(PER_CLASS):
                    stream = BytesIO()
                    Image.new("RGB", (9, 9), (place % 256,) * 3).save(stream, "PNG")
                    dataset[number] = np.frombuffer(stream.getvalue(), np.uint8)
        (root / f"{split}_labels.json").write_text(json.dumps(names))
    splits = tieredimagenet.load(tmp_path, size=4, progress=False)
    for _, part in splits:
        found = np.concatenate([expected[name] for name in part.class_names])
        np.testing.assert_array_equal(part.images.numpy(), found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.create_group("other"), "has no group 'datasets'"),
        (
            lambda file: file.create_group("datasets/n01855672"),
            "class 'n01855672' is no array of uint8 images or image files",
        ),
        (lambda file: file.create_group("datasets"), "names class 'n01855672', which .*lacks"),
    ],
)
def test_hdf5_files_of_other_content_are_named(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    mini_torchmeta(tmp_path)
    with h5py().File(tmp_path / "miniimagenet" / "val_data.hdf5", "w") as file:
        change(file)
    with pytest.raises(DataError, match=message):
        miniimagenet.load(tmp_path, size=8, progress=False)
    (tmp_path / "miniimagenet" / "val_labels.json").unlink()
    with pytest.raises(DataError, match=r"val_labels\.json is missing"):
        miniimagenet.load(tmp_path, size=8, progress=False)
