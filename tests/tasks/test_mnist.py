from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_digits import idx

from fewshot_blo.tasks import DataError, mnist

FILE = "train-images-idx3-ubyte.gz"


@pytest.fixture
def own_root(digits_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_root, tmp_path / "mnist"))


def test_real_counts(data_root: Path) -> None:
    train, test = mnist.load(data_root)
    assert (len(train), len(test)) == (60000, 10000)
    assert train.images.shape[1:] == (1, 28, 28)
    assert train.counts.tolist()[:3] == [5923, 6742, 5958]
    assert test.counts.sum() == 10000


@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_places_and_packing(folder: str, packed: bool, own_root: Path, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" / folder
    place.mkdir(parents=True)
    for file in own_root.iterdir():
        if packed:
            shutil.copy(file, place)
        else:
            (place / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    train, test = mnist.load(tmp_path / "elsewhere")
    expected = mnist.load(own_root)
    assert torch.equal(train.images, expected.train.images)
    assert torch.equal(test.labels, expected.test.labels)


def test_images_keep_their_labels(own_root: Path) -> None:
    train, test = mnist.load(own_root)
    means = torch.stack([train.images[train.labels == c].float().mean(0) for c in range(10)])
    nearest = (test.images.float()[:, None] - means).square().sum((2, 3, 4)).argmin(1)
    assert (nearest == test.labels).all()


def test_all_processes_map_the_same_images(
    own_root: Path, own_cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mnist.load(own_root)
    monkeypatch.setattr(mnist, "_read", lambda *arguments: pytest.fail("they are unpacked again"))
    again = mnist.load(own_root)
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.class_names == other.class_names
    maps = Path("/proc/self/maps").read_text()
    assert all(f"mnist-{part}.bin" in maps for part in ("train", "test"))


def test_other_files_are_unpacked_again(own_root: Path, own_cache_home: Path) -> None:
    mnist.load(own_root)
    labels = (np.arange(600) % 10).astype(np.uint8)
    (own_root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    images = gzip.decompress((own_root / FILE).read_bytes())[16:]
    first = np.frombuffer(images, np.uint8).reshape(600, 1, 28, 28)[::10]
    assert np.array_equal(mnist.load(own_root).train.select([0]).images.numpy(), first)


def test_without_a_cache_each_process_holds_them(
    own_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = mnist.load(own_root)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="each process decodes the images and holds a copy"):
        found = mnist.load(own_root)
    assert torch.equal(found.train.images, expected.train.images)
    assert torch.equal(found.test.labels, expected.test.labels)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\(.gz\) is not in .*four"):
        mnist.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"no archive", "cannot be read"),
        (gzip.compress(b"", mtime=0), "is not an idx file"),
        (gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\1" * 3 + b"12", mtime=0), "is not an idx file"),
        (gzip.compress(b"\0\0\x0d\x03" + b"\0\0\0\1" * 3 + b"1", mtime=0), "is not an idx file"),
        (
            gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\1" * 3 + b"1", mtime=0),
            "must have as many 28x28",
        ),
    ],
)
def test_damaged(content: bytes, match: str, own_root: Path) -> None:
    (own_root / FILE).write_bytes(content)
    with pytest.raises(DataError, match=match):
        mnist.load(own_root)


def test_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Offline:
        class datasets:
            @staticmethod
            def MNIST(*_: object, **__: object) -> None:
                raise RuntimeError("no network")

    monkeypatch.setattr(mnist, "torchvision_module", lambda: Offline)
    with pytest.raises(
        DataError, match=r"download of MNIST failed .no network.: try again, or put"
    ):
        mnist.load(tmp_path, download=True)
