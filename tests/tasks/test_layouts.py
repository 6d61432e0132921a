"""Layouts of folders of images: class folders, sets, tables, names of files."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.reading.layouts import LabelledFiles, labelled_files


def images(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path, None if path.suffix else "PNG")
    return root


def shown(files: LabelledFiles, root: Path, held_out: bool = False) -> dict[str, str]:
    pairs = files.held_out if held_out else files.train
    return {path.relative_to(root).as_posix(): label for path, label in pairs}


def test_the_class_is_the_first_folder(tmp_path: Path) -> None:
    images(tmp_path, "a/0.png", "a/sub/1.png", "a/sub/sub/2.png", "b/3.png", "beside.png")
    (tmp_path / "empty").mkdir()
    files = labelled_files(tmp_path)
    assert shown(files, tmp_path) == {
        "a/0.png": "a",
        "a/sub/1.png": "a",
        "a/sub/sub/2.png": "a",
        "b/3.png": "b",
    }
    assert files.notes == (
        "1 entry passed over: 1 image beside the class folders",
        "1 folder without images passed over: 'empty'",
    )


@pytest.mark.parametrize(
    ("train", "val", "test"), [("train", "val", "test"), ("Training", "valid", "Testing")]
)
def test_sets_are_kept_apart(train: str, val: str, test: str, tmp_path: Path) -> None:
    images(tmp_path, f"{train}/a/0.png", f"{train}/b/sub/1.png", f"{val}/a/2.png")
    images(tmp_path, f"{test}/b/3.png", f"{test}/stranger/4.png", f"{test}/loose.png")
    (tmp_path / "docs").mkdir()
    files = labelled_files(tmp_path)
    assert list(shown(files, tmp_path).values()) == ["a", "b"]
    assert sorted(shown(files, tmp_path, held_out=True)) == sorted(
        [f"{val}/a/2.png", f"{test}/b/3.png"]
    )
    assert files.notes == (
        f"1 entry passed over: 1 image of {test} in no class folder",
        "1 held-out image passed over, of classes without training images: 'stranger'",
        "2 held-out images kept for measuring the accuracy and not trained on",
    )


def test_images_without_classes_beside_the_sets_are_passed_over(tmp_path: Path) -> None:
    images(tmp_path, "train/a/0.png", "train/b/1.png", "test/a/2.png", "unlabeled/3.png")
    files = labelled_files(tmp_path)
    assert shown(files, tmp_path) == {"train/a/0.png": "a", "train/b/1.png": "b"}
    assert shown(files, tmp_path, held_out=True) == {"test/a/2.png": "a"}
    assert files.notes[0] == "1 entry passed over: 1 image of unlabeled in no class folder"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    images(tmp_path, "train/0.png", "train/steam/1.png", "train/diesel/2.png", "car/3.png")
    assert set(shown(labelled_files(tmp_path), tmp_path).values()) == {"car", "train"}


def test_folders_around_the_classes_are_entered(tmp_path: Path) -> None:
    images(tmp_path, "flowers/flowers/rose/0.png", "flowers/flowers/lily/1.png")
    (tmp_path / "__MACOSX" / "flowers").mkdir(parents=True)
    files = labelled_files(tmp_path)
    assert set(shown(files, tmp_path).values()) == {"rose", "lily"}
    assert files.notes == (f"the classes are the subfolders of {tmp_path / 'flowers' / 'flowers'}",)


NAMES = ("0.png", "1.png", "2.png", "3.png")
EXPECTED = {"0.png": "Schnecke ä", "1.png": "b", "2.png": "Schnecke ä", "3.png": "b"}
ROWS = [("0.png", "Schnecke ä"), ("1.png", "b"), ("2.png", "Schnecke ä"), ("3.png", "b")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_in_any_encoding(encoding: str, separator: str, end: str, tmp_path: Path) -> None:
    images(tmp_path, *NAMES)
    lines = [f'"{file}"{separator} {label}' for file, label in [("file", "label"), *ROWS]]
    (tmp_path / "labels.csv").write_bytes(end.join(lines).encode(encoding))
    files = labelled_files(tmp_path)
    assert shown(files, tmp_path) == EXPECTED
    assert files.notes == ()
    assert shown(labelled_files(tmp_path / "labels.csv"), tmp_path) == EXPECTED


@pytest.mark.parametrize(
    "header",
    [
        *("file,label", "Filename,Class", "File Name,Category", "image_path,class_name"),
        *("IMAGE;Species", "path\ttarget", "id,breed", "img,y", "image-id,label_name"),
        *("note,file,label", "label_id,file,label", "sep=;\nfile;label"),
    ],
)
def test_columns_by_any_usual_name(header: str, tmp_path: Path) -> None:
    images(tmp_path, *NAMES)
    last = header.rsplit("\n", maxsplit=1)[-1]
    separator = next(mark for mark in "\t;," if mark in last)
    columns = last.split(separator)
    text = header + "\n"
    for file, label in ROWS:
        cells = ["7"] * (len(columns) - 2) + [file, label]
        text += separator.join(cells) + "\n"
    (tmp_path / "t.tsv").write_text(text, encoding="utf-8")
    assert shown(labelled_files(tmp_path), tmp_path) == EXPECTED


def test_tables_without_names_of_columns(tmp_path: Path) -> None:
    images(tmp_path, *NAMES)
    text = "".join(f"{file},{label}\n" for file, label in ROWS)
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert shown(labelled_files(tmp_path), tmp_path) == EXPECTED


def test_files_are_found_by_path_or_name_with_or_without_suffix(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "é")
    images(tmp_path / "pictures", "sub/a.png", "b.png", "c.png", f"{decomposed}.png", "e.png")
    images(tmp_path, "outside/d.png")
    table = tmp_path / "pictures" / "t.csv"
    names = ["sub\\a.png", "B.PNG", "c", "é.png", str(tmp_path / "outside" / "d.png"), "e.png"]
    rows = "".join(f"{name},{'xy'[n % 2]}\n" for n, name in enumerate(names))
    table.write_text("file,label\n" + rows, encoding="utf-8")
    found = labelled_files(table.parent)
    assert sorted(path.name for path, _ in found.train) == sorted(
        ["a.png", "b.png", "c.png", f"{decomposed}.png", "d.png", "e.png"]
    )


def test_rows_that_are_passed_over_are_counted(tmp_path: Path) -> None:
    images(tmp_path, *NAMES, "unlisted.png")
    text = "file,label\n0.png,a\n1.png,b\ngone.png,a\nlost.png,b\n2.png,\n,a\nhttp://x/y.png,a\n\n"
    (tmp_path / "t.csv").write_text(text + "0.png,a\n" + "x" * 5000 + ".png,a\n\0.png,b\n")
    files = labelled_files(tmp_path)
    assert shown(files, tmp_path) == {"0.png": "a", "1.png": "b"}
    assert files.notes == (
        "10 entries passed over: 4 rows whose file is not there, "
        "3 images that t.csv does not list, "
        "1 row with an address instead of a file (download it), 1 row without a class, "
        "1 row without a file",
        f"{tmp_path / 't.csv'}, line 4: there is no file 'gone.png', the first of such rows",
    )


def test_sets_of_tables(tmp_path: Path) -> None:
    images(tmp_path / "images", *NAMES)
    (tmp_path / "train.csv").write_text("id,breed\n0,pug\n1,beagle\n")
    (tmp_path / "test_labels.csv").write_text("id,breed\n2,pug\n3,pug\n")
    (tmp_path / "sample.csv").write_text("id,a,b\n0,1,2\n")
    files = labelled_files(tmp_path)
    assert len(files.train) == len(files.held_out) == 2
    (tmp_path / "one.csv").write_text("id,breed,split\n0,pug,Train\n1,beagle,train\n2,pug,TEST\n")
    assert len(labelled_files(tmp_path / "one.csv").held_out) == 1
    with pytest.raises(DataError, match="both list images with their classes: name the one to use"):
        labelled_files(tmp_path)


def test_class_folders_come_before_tables(tmp_path: Path) -> None:
    images(tmp_path, "a/0.png", "b/1.png")
    (tmp_path / "t.csv").write_text("file,label\na/0.png,x\nb/1.png,y\n")
    files = labelled_files(tmp_path)
    assert {label for _, label in files.train} == {"a", "b"}
    assert files.notes[-1].endswith(
        "t.csv is not read, for there are class folders: name it to use it"
    )
    assert {label for _, label in labelled_files(tmp_path / "t.csv").train} == {"x", "y"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "has the columns of an empty file: it needs one of image files"),
        ("a,b\n1,2\n", "has the columns 'a', 'b': it needs one of image files, such as file"),
        ("file,label\n", "lists no image to train on: it has no rows but names of columns"),
        ("file,label\nx.png,a\n", "lists no image to train on: .* no file 'x.png'"),
        ("file,label\n0.png,a\n0.png,b\n", "lists 0.png as 'a' in line 2 and as 'b' in line 3"),
        ("file,label\nz.png,a\n", "'z.png' may be .*z.png or .*z.png: write its path"),
        (b"\xff\xfe\x00", "cannot be read as text in UTF-16"),
        (b'file,label\n"' + b"x" * 200_000, r"line 2 cannot be read as CSV \(field larger"),
    ],
)
def test_tables_that_say_nothing(text: str | bytes, match: str, tmp_path: Path) -> None:
    images(tmp_path, "0.png", "sub/z.png", "other/z.png")
    table = tmp_path / "t.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=match):
        labelled_files(table)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{label}_{number}", {"cat", "sea_slug", "dog"}),
        ("{label}_{number}.png", {"cat", "sea_slug", "dog"}),
        ("{label}_*", {"cat", "sea", "dog"}),
        ("?{label}_{number}", {"at", "ea_slug", "og"}),
        ("**/{label}_{number}.png", {"dog"}),
        ("{label}/*.png", {"more"}),
        ("*_{label}", {"1", "2"}),
        ("**{label}_{number}.[p]ng", None),
    ],
)
def test_classes_in_names(pattern: str, expected: set[str] | None, tmp_path: Path) -> None:
    images(tmp_path, "cat_1.png", "cat_2.png", "sea_slug_1.png", "more/dog_1.png", "other.png")
    if expected is None:
        with pytest.raises(DataError, match=r"no name of the 5 images in .* fits the pattern"):
            labelled_files(tmp_path, pattern=pattern)
        return
    files = labelled_files(tmp_path, pattern=pattern)
    assert {label for _, label in files.train} == expected
    assert "whose name does not fit the pattern" in files.notes[0]


def test_a_test_folder_without_a_known_class_holds_nothing_out(tmp_path: Path) -> None:
    images(tmp_path, "train/a/0.png", "train/b/1.png", "test/unknown/2.png")
    files = labelled_files(tmp_path)
    assert not files.held_out
    assert files.notes == (
        "1 held-out image passed over, of classes without training images: 'unknown'",
    )


def test_a_class_at_the_end_of_a_name_is_without_the_suffix(tmp_path: Path) -> None:
    images(tmp_path, "1-cat.png", "2-cat.jpg")
    shutil.copy(tmp_path / "1-cat.png", tmp_path / "3-St. Bernard")
    files = labelled_files(tmp_path, pattern="{number}-{label}")
    assert [label for _, label in files.train] == ["St. Bernard", "cat", "cat"]


def test_sets_of_names(tmp_path: Path) -> None:
    images(tmp_path, "train/cat_1.png", "train/dog_1.png", "test/cat_2.png")
    files = labelled_files(tmp_path, pattern="{label}_{number}")
    assert shown(files, tmp_path, held_out=True) == {"test/cat_2.png": "cat"}


@pytest.mark.parametrize("pattern", ["x", "{label}{label}", "{Label}_*"])
def test_a_pattern_has_one_label(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it must have \{label\} once"):
        labelled_files(tmp_path, pattern=pattern)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ((), r"has no images: name a folder with a subfolder of images a class"),
        (("a/0.png",), "has 1 class subfolder with images and 1 image; at least 2 are needed: put"),
        (("0.png", "1.png"), "has 0 class subfolders with images and 2 images; .* name a CSV file"),
        (("train/0.png", "test/1.png"), "are in test and train, not in class folders: put"),
    ],
)
def test_folders_without_classes(names: tuple[str, ...], match: str, tmp_path: Path) -> None:
    images(tmp_path, *names)
    with pytest.raises(DataError, match=match) as caught:
        labelled_files(tmp_path)
    assert "remove" not in str(caught.value)
    with pytest.raises(DataError, match="is not a folder: name one with a subfolder"):
        labelled_files(tmp_path / "nowhere")


def test_no_name_fits(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"no name of the 1 image in .* fits the pattern"):
        labelled_files(tmp_path, pattern="{label}_*")


def test_two_spellings_of_a_class(tmp_path: Path) -> None:
    images(tmp_path, *(f"{unicodedata.normalize(form, 'é')}/0.png" for form in ("NFC", "NFD")))
    with pytest.raises(DataError, match="two folders named 'é' in Unicode NFC: rename"):
        labelled_files(tmp_path)
