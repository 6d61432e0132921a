"""Zip archives in place of folders of data."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot_blo.records.files import cache_folder
from fewshot_blo.tasks import DataError, folder, miniimagenet, tieredimagenet
from fewshot_blo.tasks.reading.class_lists import SPLITS
from fewshot_blo.tasks.reading.unpacked import unpacked

pytestmark = pytest.mark.usefixtures("own_cache_home")

DIVISION = {"ant": "train", "bee": "test", "cat": "train", "dog": "validation"}


def save(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 12), (grey,) * 3).save(path, quality=100)


def zipped(root: Path) -> Path:
    """The folder as an archive in which all lies in one folder, as most programs pack it."""
    return Path(shutil.make_archive(str(root), "zip", root.parent, root.name))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "birds"
    for grey, name in enumerate(DIVISION):
        for number in range(2):
            save(root / name / f"{number}.png", 10 * grey + number)
    lines = ["class,split", *(f"{name},{split}" for name, split in DIVISION.items())]
    (root / "classes.csv").write_text("\n".join(lines))
    return zipped(root)


def written(tmp_path: Path, *names: str) -> Path:
    """An archive of small files of these names."""
    path = tmp_path / "odd.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"content")
    return path


def test_an_archive_is_read_as_its_folder_is(archive: Path) -> None:
    expected = folder.load(archive.with_suffix(""), size=16)
    splits = folder.load(archive, size=16)
    for (_, own), (_, other) in zip(splits, expected, strict=True):
        assert own.class_names == other.class_names
        assert own.images.equal(other.images)
    assert splits.validation.class_names == ("dog",)
    where, division, enlarged = splits.notes
    assert where.startswith(f"{archive} is unpacked in {cache_folder()}")
    assert division == "classes.csv in the folder divides the classes"
    assert enlarged == (
        "images are enlarged to 16x16: the first one of 4 of 4 classes is smaller, 10x12 the "
        "smallest"
    )


def test_an_archive_is_unpacked_once_and_anew_when_it_has_changed(
    archive: Path, tmp_path: Path
) -> None:
    root, _ = unpacked(archive)
    file = root / "ant" / "0.png"
    made = file.stat().st_ino
    assert unpacked(archive).root == root
    assert file.stat().st_ino == made
    file.write_bytes(b"damaged")
    unpacked(archive, refresh=True)
    Image.open(file).load()
    save(tmp_path / "birds" / "ant" / "2.png", 9)
    zipped(tmp_path / "birds")
    assert len(folder.load(archive, size=4).train.labels) == 5
    assert [path.name for path in root.parents[1].parent.glob(".*")] == []


def test_nothing_is_written_beside_an_archive(archive: Path) -> None:
    before = sorted(archive.parent.iterdir())
    unpacked(archive)
    assert sorted(archive.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/../../x.png"], r"'a/\.\./\.\./x\.png' is no path below its folder"),
        (["/x.png"], r"'/x\.png' is no path below its folder"),
        (["a\\x.png"], r"is no path below its folder, with / between folders: pack"),
        (["a/x.png", "a/x.png"], r"'a/x\.png' is in it twice: pack"),
        ([], r"odd\.zip holds no files: name another archive"),
        (["a", "a/b"], r"odd\.zip cannot be unpacked into .*: unpack it yourself"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    path = written(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        unpacked(path)
    assert [file for file in cache_folder().rglob("*") if not file.is_dir()] == []


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "links.zip"
    link = zipfile.ZipInfo("a/x.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"'a/x\.png' is a link: pack the files themselves"):
        unpacked(path)


def test_encrypted_archives_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a/x.png")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"'a/x\.png' is encrypted: unpack it and name the folder"):
        unpacked(path)


def test_a_damaged_archive_is_refused(archive: Path) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        DataError, match=r"birds\.zip is no zip archive, or it is damaged .*: get it"
    ):
        folder.load(archive, size=4)
    damaged = bytearray(content)
    damaged[content.index(b"ant/0.png") + 30] ^= 255
    archive.write_bytes(damaged)
    with pytest.raises(DataError, match=r"birds\.zip is no zip archive, or it is damaged"):
        folder.load(archive, size=4)


def test_an_archive_larger_than_the_disk_is_refused(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 0, 100))
    with pytest.raises(DataError, match=r"holds 0\.0 GiB, and .* has 0\.0 GiB free: set"):
        unpacked(archive)


def test_a_cache_folder_that_cannot_be_made_is_said(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"unpack it yourself and name the folder, or set"):
        folder.load(archive, size=4)


def test_what_a_killed_process_left_is_removed(archive: Path) -> None:
    parent = unpacked(archive).root.parents[2]
    left = parent / ".unpacking-0123"
    left.mkdir()
    (parent / ".unpacking.lock").write_text('{"process": 1, "host": "other"}')
    unpacked(archive, refresh=True)
    assert not left.exists()


def write_csv(root: Path) -> None:
    for split in SPLITS:
        lines = ["filename,label"]
        for label in miniimagenet.PUBLISHED.classes(split)[:2]:
            save(root / "images" / f"{label}00000001.jpg", 7)
            lines.append(f"{label}00000001.jpg,{label}")
        (root / f"{split}.csv").write_text("\n".join(lines))


def write_folders(root: Path) -> None:
    for split in SPLITS:
        for label in miniimagenet.PUBLISHED.classes(split)[:2]:
            save(root / split / label / "1.jpg", 7)


def write_pickles(root: Path) -> None:
    root.mkdir()
    for split in SPLITS:
        labels = miniimagenet.PUBLISHED.classes(split)[:2]
        content = {
            "image_data": np.full((2, 84, 84, 3), 7, np.uint8),
            "class_dict": {label: [position] for position, label in enumerate(labels)},
        }
        (root / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [write_csv, write_folders, write_pickles])
@pytest.mark.parametrize("name", ["one folder", "alone"])
def test_miniimagenet_in_an_archive(tmp_path: Path, write: object, name: str) -> None:
    root = tmp_path / "mini"
    assert callable(write)
    write(root)
    archive = zipped(root)
    if name == "alone":
        archive = Path(shutil.make_archive(str(root), "zip", root))
    splits = miniimagenet.load(archive, size=8, partial=True)
    for split, (_, dataset) in zip(SPLITS, splits, strict=True):
        assert list(dataset.class_names) == sorted(miniimagenet.PUBLISHED.classes(split)[:2])
        assert (dataset.images - 7).unique().tolist() == [0]
    assert splits.notes[0].startswith(f"{archive} is unpacked in")


def test_tieredimagenet_in_an_archive(tmp_path: Path) -> None:
    for split in SPLITS:
        for label in tieredimagenet.PUBLISHED.classes(split)[:1]:
            save(tmp_path / "tiered" / split / label / "1.jpg", 7)
    splits = tieredimagenet.load(zipped(tmp_path / "tiered"), size=8, partial=True)
    assert len(splits.test) == 1
    assert len(splits.notes) == 1


def test_other_paths_are_left_as_they_are(tmp_path: Path) -> None:
    inner = tmp_path / "folder.zip"  # A folder of this name is a folder.
    inner.mkdir()
    for path in (inner, tmp_path / "absent.zip", tmp_path):
        assert unpacked(path) == (path, ())
    with pytest.raises(DataError, match=r"absent\.zip is not a folder"):
        folder.load(tmp_path / "absent.zip", size=4)


def test_an_archive_without_permission_says_so(archive: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    archive.chmod(0)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpacked(archive)
