from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
import torch

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
