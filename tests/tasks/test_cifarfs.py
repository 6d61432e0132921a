from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fewshot_blo.tasks import cifarfs
from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

SPLIT_LISTS = Path(cifarfs.__file__).with_name("splits")
NAMES = sorted(
    name for file in (SPLIT_LISTS / "cifarfs").glob("*.txt") for name in file.read_text().split()
)
GRID = "cifar100_fewshot_webp.npz"
VARIANTS: list[tuple[Any, list[int]]] = [("cifarfs", [64, 16, 20]), ("fc100", [60, 20, 20])]


ROWS, COLUMNS = 2, 3  # of the small grids here
PER_CLASS = ROWS * COLUMNS
PUBLISHED = {"IMAGES_PER_CLASS": 600, "_ROWS": 20, "_COLUMNS": 30}


def class_images(position: int) -> NDArray[np.uint8]:
    """``[6, 3, 32, 32]``, of random colours."""
    rng = np.random.default_rng(position)
    return rng.integers(0, 256, (PER_CLASS, 3, 32, 32), dtype=np.uint8)


def write_grids(root: Path, **changes: Any) -> None:
    arrays: dict[str, Any] = {"classes": np.array(NAMES)}
    for position in range(100):
        grid = class_images(position).reshape(ROWS, COLUMNS, 3, 32, 32).transpose(0, 3, 1, 4, 2)
        stream = BytesIO()
        image = Image.fromarray(np.ascontiguousarray(grid).reshape(ROWS * 32, COLUMNS * 32, 3))
        image.save(stream, "WEBP", lossless=True, quality=0, method=0)
        arrays[f"c{position:02d}"] = np.frombuffer(stream.getvalue(), np.uint8)
    with (root / GRID).open("wb") as file:
        np.savez(file, **(arrays | changes))


def write_original(root: Path) -> None:
    """As unpacked by torchvision; images are shuffled, and one of each class is in ``test``."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, part in (("train", slice(0, 5)), ("test", slice(5, 6))):
        images = np.concatenate([class_images(position)[part] for position in range(100)])
        labels = np.repeat(np.arange(100), len(images) // 100)
        order = rng.permutation(len(images))
        content = {
            "data": images[order].reshape(-1, 3072),
            "fine_labels": labels[order].tolist(),
            "coarse_labels": [0] * len(images),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {"fine_label_names": NAMES, "coarse_label_names": ["everything"]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, own_cache_home: Path) -> None:
    """A data set of six images a class, and a cache folder of its own."""
    assert {name: getattr(cifarfs, name) for name in PUBLISHED} == PUBLISHED
    for name, value in zip(PUBLISHED, (PER_CLASS, ROWS, COLUMNS), strict=True):
        monkeypatch.setattr(cifarfs, name, value)


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grids")
    write_grids(root)
    return root


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original")
    write_original(root)
    return root


def hashes(dataset: ClassDataset) -> dict[str, list[bytes]]:
    """Sorted digests of the images of each class."""
    found: dict[str, list[bytes]] = {name: [] for name in dataset.class_names}
    for image, label in zip(dataset.images.numpy(), dataset.labels.tolist(), strict=True):
        found[dataset.class_names[label]].append(hashlib.sha256(image.tobytes()).digest())
    return {name: sorted(digests) for name, digests in found.items()}


def sizes(splits: Splits) -> list[int]:
    return [len(dataset.class_names) for _, dataset in splits]


@pytest.mark.parametrize(("variant", "expected"), VARIANTS)
def test_both_sources_give_the_same_data_set(
    grids: Path, original: Path, variant: Any, expected: list[int]
) -> None:
    one, other = cifarfs.load(grids, variant=variant), cifarfs.load(original, variant=variant)
    assert sizes(one) == expected
    for (split, dataset), (_, twin) in zip(one, other, strict=True):
        short = {"validation": "val"}.get(split, split)
        listed = (SPLIT_LISTS / variant / f"{short}.txt").read_text().split()
        assert list(dataset.class_names) == listed
        assert set(dataset.counts.tolist()) == {PER_CLASS}
        assert dataset.images.shape[1:] == (3, 32, 32)
        assert hashes(dataset) == hashes(twin)


def test_one_folder_below_the_root(grids: Path) -> None:
    below = cifarfs.load(grids.parent)
    assert below.test.images.equal(cifarfs.load(grids).test.images)


def test_images_belong_to_their_class(grids: Path) -> None:
    dataset = cifarfs.load(grids).test
    for position, name in enumerate(dataset.class_names):
        rows = dataset.images[dataset.labels == position]
        np.testing.assert_array_equal(rows.numpy(), class_images(NAMES.index(name)))


def test_another_size(grids: Path) -> None:
    own, resized = cifarfs.load(grids).test, cifarfs.load(grids, size=28).test
    assert resized.class_names == own.class_names
    assert resized.images.shape == (len(own), 3, 28, 28)
    for before, after in zip(own.images[::40], resized.images[::40], strict=True):
        image = Image.fromarray(before.permute(1, 2, 0).numpy())
        expected = np.asarray(image.resize((28, 28), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(after.permute(1, 2, 0).numpy(), expected)
    with pytest.raises(DataError, match="size is 0"):
        cifarfs.load(grids, size=0)


def test_decoded_once(grids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cifarfs.load(grids)

    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cifarfs, "open_image", fail)
    assert cifarfs.load(grids).train.images.equal(first.train.images)
    assert [path.name for path in grids.iterdir()] == [GRID]


def test_unknown_variant(grids: Path) -> None:
    with pytest.raises(DataError, match="variant is 'cifar10': it must be one of cifarfs, fc100"):
        cifarfs.load(grids, variant="cifar10")  # type: ignore[arg-type]


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put cifar100_fewshot_webp\.npz or the folder"):
        cifarfs.load(tmp_path)


def link(root: Path, source: Path) -> Path:
    """The files of the original under another root, where one can be replaced."""
    (root / "cifar-100-python").mkdir()
    for file in (source / "cifar-100-python").iterdir():
        (root / "cifar-100-python" / file.name).symlink_to(file)
    return root / "cifar-100-python"


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_missing_and_truncated_files(
    tmp_path: Path, original: Path, own_cache_home: Path, name: str
) -> None:
    file = link(tmp_path, original) / name
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        cifarfs.load(tmp_path)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{name} cannot be unpickled"):
        cifarfs.load(tmp_path)
    file.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=rf"{name} is refused.*os\.system"):
        cifarfs.load(tmp_path)
    assert not list(own_cache_home.rglob("*.bin"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("meta", {"fine_label_names": NAMES[:99]}, "names 99 classes"),
        ("meta", {"fine_label_names": [*NAMES[:99], "zebra"]}, "'zebra' is not in CIFAR-100"),
        (
            "test",
            {"data": np.zeros((2, 9), np.uint8), "fine_labels": [0, 1]},
            "3072 values per image",
        ),
        (
            "test",
            {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [0]},
            "has 5 images instead of 6",
        ),
    ],
)
def test_wrong_content(
    tmp_path: Path, original: Path, name: str, content: object, message: str
) -> None:
    file = link(tmp_path, original) / name
    file.unlink()
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        cifarfs.load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "truncated or corrupt"),
        (lambda content: b"no archive", "truncated or corrupt"),
        (lambda content: b"", "truncated or corrupt"),
    ],
)
def test_damaged_grids(
    tmp_path: Path, grids: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    (tmp_path / GRID).write_bytes(damage((grids / GRID).read_bytes()))
    with pytest.raises(DataError, match=message):
        cifarfs.load(tmp_path)


def test_damaged_grid_is_named(tmp_path: Path) -> None:
    with (tmp_path / GRID).open("wb") as file:
        np.savez(file, classes=np.array(NAMES), c00=np.zeros(9, np.uint8))
    with pytest.raises(DataError, match=r"image c00 in .* cannot be decoded"):
        cifarfs.load(tmp_path)


def test_download_only_if_asked(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fetch(url: str, folder: str, *, filename: str, md5: str) -> None:
        calls.append((url, filename, md5))
        (Path(folder) / "cifar-100-python").symlink_to(original / "cifar-100-python")

    module = SimpleNamespace(
        datasets=SimpleNamespace(
            CIFAR100=SimpleNamespace(url="address", filename="archive", tgz_md5="sum"),
            utils=SimpleNamespace(download_and_extract_archive=fetch),
        )
    )
    monkeypatch.setattr(cifarfs, "torchvision_module", lambda: module)
    with pytest.raises(DataError, match=r"or set download"):
        cifarfs.load(tmp_path)
    assert not calls
    for _ in range(2):
        assert sizes(cifarfs.load(tmp_path, download=True)) == [64, 16, 20]
    assert calls == [("address", "archive", "sum")]


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(*_: object, **__: object) -> None:
        raise OSError("no connection")

    datasets = torchvision_module().datasets
    monkeypatch.setattr(datasets.utils, "download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"no connection.*cifar-100-python\.tar\.gz"):
        cifarfs.load(tmp_path, download=True)


def test_real_images(data_root: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data_root / "cifarfs"
    if not (root / GRID).is_file():
        pytest.skip(f"{root / GRID} is absent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    for name, value in PUBLISHED.items():
        monkeypatch.setattr(cifarfs, name, value)
    for variant, expected in VARIANTS:
        assert sizes(cifarfs.load(root, variant=variant)) == expected
    some = cifarfs.load(root).train.images[::50]
    # Means of CIFAR-100's training images.
    mean = some.float().mean((0, 2, 3)) / 255
    np.testing.assert_allclose(mean, [0.507, 0.487, 0.441], atol=0.02)
