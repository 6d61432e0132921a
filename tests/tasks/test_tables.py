"""Folders with tables of files and classes, sets of class folders, and JSON files of easyfsl."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fewshot_blo.tasks import DataError, Splits
from fewshot_blo.tasks.folder import load
from fewshot_blo.tasks.reading.manifest import read_manifest

CLASSES = ["ant", "bee", "cat", "dog", "eel"]
SPLIT = {"ant": "train", "bee": "train", "cat": "val", "dog": "test", "eel": "train"}


def grey(name: str, number: int) -> int:
    return 40 * CLASSES.index(name) + number


def save(path: Path, name: str, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 6), grey(name, number)).save(path)


def flat(root: Path, nested: bool = False) -> Path:
    """Two images a class, ``images/ant_0.png``."""
    for name in CLASSES:
        for number in range(2):
            save(root / "images" / (name if nested else "") / f"{name}_{number}.png", name, number)
    return root


def assert_divided(splits: Splits) -> None:
    for (split, part), short in zip(splits, ("train", "val", "test"), strict=True):
        names = [name for name in CLASSES if SPLIT[name] == short]
        assert list(part.class_names) == names, split
        expected = [grey(name, number) for name in names for number in range(2)]
        assert part.images[:, 0, 0, 0].tolist() == expected


def rows(short: str, line: str) -> list[str]:
    chosen = [name for name in CLASSES if SPLIT[name] == short]
    return [line.format(name=name, n=number) for number in range(2) for name in chosen]


@pytest.mark.parametrize("nested", [False, True])
def test_libfewshot(nested: bool, tmp_path: Path) -> None:
    """RL-VIG/LibFewShot, core/data/dataset.py: root/{train,val,test}.csv, files in root/images."""
    root = flat(tmp_path, nested)
    for short in ("train", "val", "test"):
        lines = ["filename,label", *rows(short, "{name}_{n}.png,{name}")]
        (root / f"{short}.csv").write_text("\n".join(lines) + "\n")
    splits = load(root, size=2)
    assert_divided(splits)
    assert splits.notes == ()
    (root / "readme.txt").touch()
    save(root / "images" / "other.png", "ant", 0)
    note = "2 entries passed over: 1 .txt, 1 image that no table lists"
    assert load(root, size=2).notes == (note,)


def test_files_of_one_name_are_those_of_their_class(tmp_path: Path) -> None:
    for name in CLASSES:
        for number in range(2):
            save(tmp_path / "images" / name / f"{number}.png", name, number)
    for short in ("train", "val", "test"):
        lines = ["filename,label", *rows(short, "{n}.png,{name}")]
        (tmp_path / f"{short}.csv").write_text("\n".join(lines))
    assert_divided(load(tmp_path, size=2))


def test_miniimagenet_of_easyfsl(tmp_path: Path) -> None:
    """sicara/easy-few-shot-learning, easyfsl/datasets/mini_imagenet.py: root/class_name/image_name,
    with tables in a folder of their own."""
    root, specs = tmp_path / "images", tmp_path / "specs"
    specs.mkdir()
    for name in CLASSES:
        for number in range(2):
            save(root / name / f"{name}_{number}.png", name, number)
    for short in ("train", "val", "test"):
        lines = ["class_name,image_name", *rows(short, "{name},{name}_{n}.png")]
        (specs / f"{short}.csv").write_text("\n".join(lines))
    assert_divided(load(root, table=specs, size=2))


def write_specs(folder: Path, pattern: str) -> None:
    folder.mkdir(exist_ok=True)
    for short in ("train", "val", "test"):
        names = [name for name in CLASSES if SPLIT[name] == short]
        roots = [pattern.format(name) for name in names]
        content = {"class_names": names, "class_roots": roots}
        (folder / f"{short}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("pattern", ["./data/CUB/images/{}", "{}", "../somewhere/images/{}"])
def test_json_of_easyfsl(pattern: str, tmp_path: Path) -> None:
    """data/CUB/train.json of it: class_roots are relative to where its programs start."""
    for name in CLASSES:
        for number in range(2):
            save(tmp_path / "CUB" / "images" / name / f"{number}.png", name, number)
    root = tmp_path / "CUB" / ("images" if pattern == "{}" else "")
    write_specs(tmp_path / "specs", pattern)
    assert_divided(load(root, table=tmp_path / "specs", size=2))
    write_specs(root, pattern)
    assert_divided(load(root, size=2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"val\.json cannot be read as JSON"),
        ('{"class_names": []}', "lacks 'class_roots'"),
        ('{"class_names": ["cat"], "class_roots": []}', "must be lists of text of one length"),
        ('{"class_names": ["cat"], "class_roots": ["no"]}', "'no' of class 'cat' is not in"),
    ],
)
def test_wrong_json_is_named(content: str, message: str, tmp_path: Path) -> None:
    for name in CLASSES:
        save(tmp_path / name / "0.png", name, 0)
    write_specs(tmp_path, "{}")
    (tmp_path / "val.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path, size=2)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("image_path,class_name,split", "utf-8"),
        ("Filename,Label,Subset", "utf-16"),
        ("file,class,partition", "utf-8-sig"),
        ("", "utf-8"),
    ],
)
def test_one_table_with_splits(separator: str, header: str, encoding: str, tmp_path: Path) -> None:
    root = flat(tmp_path / "data")
    lines = [header] if header else []
    for name in CLASSES:
        lines += [f"images/{name}_{number}.png,{name},{SPLIT[name]}" for number in range(2)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines).replace(",", separator), encoding=encoding)
    assert_divided(load(root, table=table, size=2))


@pytest.mark.parametrize("header", ["", "path\n", "id,path\n"])
def test_classes_are_the_folders_of_paths(header: str, tmp_path: Path) -> None:
    root = flat(tmp_path / "data", nested=True)
    prefix = "7," if header.startswith("id") else ""
    lines = [f"{prefix}images/{name}/{name}_{n}.png" for name in CLASSES for n in range(2)]
    table = tmp_path / "table.csv"
    table.write_text(header.replace("id", "number") + "\n".join(lines))
    splits = load(root, table=table, size=2, seed=1)
    assert sorted(splits.joined().class_names) == CLASSES
    assert len(splits.joined()) == 10


def test_a_table_without_splits_and_a_table_of_classes(tmp_path: Path) -> None:
    root = flat(tmp_path / "data")
    table, classes = tmp_path / "images.csv", tmp_path / "classes.csv"
    lines = [f"{name}_{number}.png;{name}" for name in CLASSES for number in (0, 1)]
    table.write_text("\n".join(["image;label", *lines]))
    classes.write_text("class_name;split\n" + "\n".join(f"{n};{s}" for n, s in SPLIT.items()))
    assert_divided(load(root, table=table, csv=classes, size=2))
    by_seed = {load(root, table=table, seed=seed, size=2).test.class_names for seed in range(9)}
    assert len(by_seed) > 1


def test_sets_of_class_folders(tmp_path: Path) -> None:
    for name in CLASSES:
        for number in range(2):
            save(tmp_path / SPLIT[name] / name / f"{number}.png", name, number)
    assert_divided(load(tmp_path, size=2))


def test_sets_of_images_are_joined_and_it_is_said(tmp_path: Path) -> None:
    for name in CLASSES:
        save(tmp_path / "train" / name / "0.png", name, 0)
        save(tmp_path / "test" / name / "1.png", name, 1)
    splits = load(tmp_path, size=2)
    assert sorted(splits.joined().class_names) == CLASSES
    assert set(splits.joined().counts.tolist()) == {2}
    assert splits.notes == (
        f"{tmp_path}: the splits hold the same classes, so that they divide images: they were "
        "joined, and the classes divided at random",
    )


def in_two_sets(root: Path) -> None:
    save(root / "val" / "ant" / "9.png", "ant", 9)


def nothing_to_validate(root: Path) -> None:
    (root / "val").rename(root / "train" / "val")
    for path in (root / "train" / "val").rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (in_two_sets, "class 'ant' is in both train and validation, but 'cat' is not in train"),
        (nothing_to_validate, "has no class in validation"),
    ],
)
def test_sets_that_divide_neither_way(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    for name in CLASSES:
        save(tmp_path / "data" / SPLIT[name] / name / "0.png", name, 0)
    damage(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "data", size=2)
    table = tmp_path / "classes.csv"  # The remedy that the first one names.
    table.write_text("class,split\nant,train\nbee,val\ndog,test")
    assert load(tmp_path / "data", csv=table, size=2).validation.class_names == ("bee",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class,split\nant_0.png,ant,held-out\n", "line 2: split is 'held-out'"),
        ("file,class,split\nant_0.png,ant,train\nbee_0.png,bee,\n", "gives no split for 1 images"),
        ("file,class\nno_0.png,ant\n", r"lists no image that is there: .*no file 'no_0\.png'"),
        ("file,class\nant_0.png,ant\nant_0.png,bee\n", "as 'ant' in line 2 and as 'bee'"),
        ("a,b,c\n1,2,3\n", "it needs one of image files"),
        ("file,class\nant_0.png,ant\n", "has 1 class with images: at least 3 are needed"),
    ],
)
def test_wrong_tables_are_named(text: str, message: str, tmp_path: Path) -> None:
    root = flat(tmp_path / "data")
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        load(root, table=table, size=2)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="is no table, nor a folder of tables"):
        load(root, table=tmp_path / "absent.csv", size=2)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_files_about_something_else_are_passed_over(suffix: str, tmp_path: Path) -> None:
    for name in CLASSES:
        save(tmp_path / name / "0.png", name, 0)
    for short in ("train", "val", "test"):
        (tmp_path / f"{short}{suffix}").write_text('{"epochs": 3}')
    splits = load(tmp_path, size=2)
    assert len(splits.joined().class_names) == 5
    assert splits.notes == (f"3 entries passed over: 3 {suffix}",)


def test_a_corrupt_image_of_a_table_is_named(tmp_path: Path) -> None:
    root = flat(tmp_path)
    (root / "images" / "cat_1.png").write_bytes(b"no image")
    for short in ("train", "val", "test"):
        lines = ["filename,label", *rows(short, "{name}_{n}.png,{name}")]
        (root / f"{short}.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"images/cat_1\.png cannot be decoded"):
        load(root, size=2)


def test_names_are_composed(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(unicodedata.normalize("NFD", "é/1.png\né/2.jpg"))
    assert {row.label for row in read_manifest(table)} == {"é"}
