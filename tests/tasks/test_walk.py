"""The one walker through folders of images: what it finds, follows and passes over."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.reading import formats
from fewshot_blo.tasks.reading.images import read_image
from fewshot_blo.tasks.reading.layouts import labelled_files
from fewshot_blo.tasks.reading.walk import walk


def image(path: Path, file_format: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (200, 40, 120)).save(path, file_format)
    return path


def names(root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in walk(root).files]


def test_suffixes_of_every_format_that_pillow_reads(tmp_path: Path) -> None:
    written = ["a.PNG", "b.jpg", "c.JPEG", "d.bmp", "e.webp", "f.gif", "g.tif", "h.ppm", "i.tga"]
    for name in (*written, "j.jp2", "k.ico", "l.pcx"):
        image(tmp_path / name)
    for name in ("m.jfif", "n.jpe", "o.mpo"):
        image(tmp_path / name, "JPEG")
    found = names(tmp_path)
    assert len(found) == 15
    for name in found:
        pixels = read_image(tmp_path / name, size=4, color=True)
        assert abs(pixels[:, 2, 2].astype(int) - [200, 40, 120]).max() < 8


@pytest.mark.parametrize("name", ["noname", "IMG.0001", "St. Bernard 3", "a.b c"])
def test_without_a_suffix_the_content_decides(name: str, tmp_path: Path) -> None:
    image(tmp_path / name, "PNG")
    (tmp_path / "text").write_text("BM is how a bitmap begins, and this is none")
    (tmp_path / "empty").touch()
    (tmp_path / "part").write_bytes((tmp_path / name).read_bytes()[:20])
    found = walk(tmp_path)
    assert [file.name for file in found.files] == [name]
    assert found.notes() == ["3 entries passed over: 3 without a suffix"]
    assert read_image(tmp_path / name, size=4, color=True).shape == (3, 4, 4)


@pytest.mark.parametrize("root", ["datasets--me--pets", "copied"])
def test_a_cache_of_hugging_face_is_read_by_its_snapshots(root: str, tmp_path: Path) -> None:
    tmp_path /= root
    snapshot = tmp_path / "snapshots" / "0a1b"
    if root == "copied":  # Data sets that are fetched by the hash of a commit have no refs.
        (tmp_path / "refs").mkdir(parents=True)
        (tmp_path / "refs" / "main").write_text("0a1b")
    for number, name in enumerate(("a/0.png", "b/1.png")):
        blob = image(tmp_path / "blobs" / f"{number}c{number}d", "PNG")
        (snapshot / name).parent.mkdir(parents=True)
        (snapshot / name).symlink_to(blob)
    found = walk(tmp_path)
    assert names(tmp_path) == ["snapshots/0a1b/a/0.png", "snapshots/0a1b/b/1.png"]
    assert found.notes() == []
    files = labelled_files(tmp_path)
    assert [label for _, label in files.train] == ["a", "b"]
    assert files.notes == (f"the classes are the subfolders of {snapshot}",)


def test_a_folder_of_the_name_blobs_is_a_class_elsewhere(tmp_path: Path) -> None:
    image(tmp_path / "blobs" / "0.png")
    image(tmp_path / "snapshots" / "0.png")
    assert names(tmp_path) == ["blobs/0.png", "snapshots/0.png"]


def test_a_huge_image_without_a_suffix_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(tmp_path / "huge", "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert names(tmp_path) == ["huge"]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.heic", " (pip install '.[heic]' in a checkout of fewshot_blo)"),
        ("b.HIF", " (pip install '.[heic]' in a checkout of fewshot_blo)"),
        ("c.avif", " (install Pillow 11.3 or later)"),
        ("d.eps", ""),
        ("e.pdf", ""),
        ("f.mp4", ""),
    ],
)
def test_what_is_not_read_is_counted_with_its_remedy(
    name: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {s: f for s, f in formats.suffixes().items() if f not in ("HEIF", "AVIF")}
    monkeypatch.setattr(formats, "suffixes", lambda: without)
    (tmp_path / name).write_bytes(b"content")
    suffix = Path(name).suffix.lower()
    assert walk(tmp_path).notes() == [f"1 entry passed over: 1 {suffix}{remedy}"]
    with pytest.raises(DataError, match=r"install|leave it out") as caught:
        read_image(tmp_path / name, size=4, color=True)
    assert remedy.strip(" ()") in str(caught.value)


def test_heic_with_its_extra(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    assert ".heic" in formats.suffixes()
    image(tmp_path / "a.heic", "HEIF")
    shutil.copy(tmp_path / "a.heic", tmp_path / "noname")
    assert names(tmp_path) == ["a.heic", "noname"]
    for name in names(tmp_path):
        pixels = read_image(tmp_path / name, size=4, color=True)
        assert abs(pixels[:, 2, 2].astype(int) - [200, 40, 120]).max() < 8


def test_junk_is_passed_over_without_a_word_and_hidden_files_are_counted(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    for junk in ("__MACOSX/a.png", ".ipynb_checkpoints/a.png", ".git/x.png", "._a.png"):
        image(tmp_path / junk)
    for junk in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / junk).touch()
    image(tmp_path / ".secret.png")
    image(tmp_path / ".cellar" / "b.png")
    (tmp_path / "folder.png").mkdir()
    image(tmp_path / "named.jpg" / "in.png")
    found = walk(tmp_path)
    assert [file.name for file in found.files] == ["a.png", "in.png"]
    assert found.notes() == ["2 entries passed over: 2 hidden"]


def test_links_are_followed_as_caches_make_them(tmp_path: Path) -> None:
    """Hugging Face, DVC and git-annex keep files under hashes elsewhere, or in a hidden folder."""
    root = tmp_path / "root"
    blob = image(tmp_path / "blobs" / "0a1b2c", "PNG")
    annexed = image(root / ".git" / "annex" / "0a1b", "PNG")
    for number, target in enumerate((blob, annexed)):
        link = root / "cats" / f"{number}.png"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))
    image(tmp_path / "dogs" / "deep" / "x.png")
    (root / "dogs").symlink_to(tmp_path / "dogs")
    found = walk(root)
    assert names(root) == ["cats/0.png", "cats/1.png", "dogs/deep/x.png"]
    assert found.notes() == [f"2 links out of {root} followed"]
    assert read_image(found.files[0], size=4, color=True)[0, 0, 0] == 200


def test_circles_and_broken_links_end(tmp_path: Path) -> None:
    root = tmp_path / "root"
    image(root / "a" / "0.png")
    image(root / "b" / "1.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "above").symlink_to(tmp_path)
    (root / "a" / "everything").symlink_to("/")
    (root / "a" / "here").symlink_to(".")
    (root / "a" / "b").symlink_to(root / "b")
    (root / "b" / "a").symlink_to(root / "a")
    (root / "a" / "self.png").symlink_to("self.png")
    (root / "a" / "gone.png").symlink_to("gone")
    found = walk(root)
    assert names(root) == ["a/0.png", "a/b/1.png", "b/1.png", "b/a/0.png"]
    assert found.passed_over["broken links (fetch the files)"] == 4
    assert found.passed_over["links to folders that are read already"] == 10


def test_many_links_to_each_other_are_not_multiplied(tmp_path: Path) -> None:
    for number in range(12):
        image(tmp_path / str(number) / "x.png")
    for first in range(12):
        for second in range(12):
            (tmp_path / str(first) / f"to{second}").symlink_to(tmp_path / str(second))
    assert len(walk(tmp_path).files) == 12 * 12


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_special_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.png")
    assert walk(tmp_path).notes() == ["2 entries passed over: 2 special files"]


def test_a_closed_folder_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "open" / "a.png")
    (tmp_path / "closed").mkdir()
    every = os.scandir

    def guarded(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError
        return every(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = walk(tmp_path)
    assert len(found.files) == 1
    assert found.notes() == ["1 entry passed over: 1 folder without permission to read (allow it)"]


def test_a_file_stands_for_itself_and_nothing_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").touch()
    assert walk(tmp_path / "a.xyz").files == [tmp_path / "a.xyz"]
    with pytest.raises(DataError, match="nowhere is not a folder"):
        walk(tmp_path / "nowhere")


def test_kinds_are_counted_in_one_sentence(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.csv", ".d"):
        (tmp_path / name).touch()
    assert walk(tmp_path).notes() == ["4 entries passed over: 2 .txt, 1 .csv, 1 hidden"]
