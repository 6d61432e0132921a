from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import DataError, Splits
from fewshot_blo.tasks.folder import load


def make(root: Path, classes: dict[str, int]) -> Path:
    """A folder of classes with so many images each; the grey value tells the class."""
    for value, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            grey = 10 * value + index
            Image.new("RGB", (12, 9), (grey,) * 3).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path / "data", {"ant": 2, "bee": 3, "cat": 1, "dog": 2, "eel": 2})


def write_csv(root: Path, text: str) -> Path:
    file = root.parent / "splits.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_class_is_in_one_split_with_all_its_images(root: Path) -> None:
    splits = load(root, size=6)
    names = [name for _, part in splits for name in part.class_names]
    assert sorted(names) == ["ant", "bee", "cat", "dog", "eel"]
    counts = {"ant": 2, "bee": 3, "cat": 1, "dog": 2, "eel": 2}
    for _, part in splits:
        assert part.images.shape == (len(part), 3, 6, 6)
        assert part.counts.tolist() == [counts[name] for name in part.class_names]
        for image, label in zip(part.images, part.labels, strict=True):
            assert int(image[0, 0, 0]) // 10 == list(counts).index(part.class_names[int(label)])


def test_splits_follow_the_seed_alone(root: Path) -> None:
    def division(seed: int) -> list[tuple[str, ...]]:
        return [part.class_names for _, part in load(root, size=2, seed=seed)]

    assert division(3) == division(3)
    assert len({tuple(division(seed)) for seed in range(10)}) > 1


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ((0.6, 0.2, 0.2), [3, 1, 1]),
        ((0.98, 0.01, 0.01), [3, 1, 1]),
        ((0.01, 0.01, 0.98), [1, 1, 3]),
    ],
)
def test_fractions_leave_no_split_empty(
    root: Path, fractions: tuple[float, float, float], expected: list[int]
) -> None:
    splits = load(root, size=2, fractions=fractions)
    assert [len(part.class_names) for _, part in splits] == expected


@pytest.mark.parametrize("fractions", [(0.5, 0.2, 0.2), (64, 16, 20)])
def test_fractions_that_do_not_divide_are_refused(
    root: Path, fractions: tuple[float, float, float]
) -> None:
    with pytest.raises(DataError, match="three positive numbers that sum to 1"):
        load(root, size=2, fractions=fractions)
    with pytest.raises(ConfigurationError, match=r"fractions\[2\] is 0\.0: it must be positive"):
        load(root, size=2, fractions=(0.6, 0.4, 0.0))


def test_csv_divides_the_classes_it_lists(root: Path) -> None:
    text = "\ufeffnote,class, split\nx,bee,train\nx,ant,Train\nx,cat,val\nx,dog,test\n"
    splits = load(root, size=2, csv=write_csv(root, text))
    assert [part.class_names for _, part in splits] == [("ant", "bee"), ("cat",), ("dog",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class,split\nant,train\nbee,held-out\n", "line 3: split is 'held-out'"),
        ("class,split\nant,train\nwasp,test\n", "line 3: class 'wasp' has no folder"),
        ("class,split\nant,train\nant,test\n", "line 3: class 'ant' is listed twice"),
        ("class,split\nant,train\nbee\n", "line 3: split is ''"),
        ("class,split\nant,train\nbee,test\n", "no class in validation"),
        ("name,split\nant,train\n", "line 1: column class is missing"),
        ("", "line 1: column class and split is missing"),
    ],
)
def test_a_wrong_csv_is_named_with_its_line(root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(root, size=2, csv=write_csv(root, text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"splits\.csv cannot be read"),
        (b"class,split\n\xff\xfe,train\n", "line 2: class '\xff\xfe' has no folder"),
        ("class;split\nant".encode("utf-16")[:-1], r"splits\.csv cannot be read as text"),
    ],
)
def test_an_unreadable_csv_is_named(root: Path, content: bytes | None, message: str) -> None:
    file = root.parent / "splits.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(root, size=2, csv=file)


def test_names_of_any_script_are_composed(tmp_path: Path) -> None:
    names = ["がくせい", "Ångström", "ключ 1", "🐜"]
    root = make(tmp_path / "data", {unicodedata.normalize("NFD", name): 1 for name in names})
    text = "class,split\n" + "".join(
        f"{name},{split}\n"
        for name, split in zip(names, ["train", "val", "test", "test"], strict=True)
    )
    splits = load(root, size=2, csv=write_csv(root, text))
    assert {name for _, part in splits for name in part.class_names} == set(names)


def test_hidden_files_other_files_and_nested_folders_are_passed_over(root: Path) -> None:
    (root / ".git").mkdir()
    (root / "readme.txt").write_text("not a class")
    for name in ("notes.txt", "._0.png", "Thumbs.db"):
        (root / "ant" / name).write_bytes(b"no image")
    (root / "ant" / "more.png").mkdir()
    splits = load(root, size=2)
    assert sum(len(part) for _, part in splits) == 10
    assert splits.notes == ("2 entries passed over: 2 .txt",)


def test_links_are_followed_and_said(root: Path, tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", {"fly": 1})
    (root / "fly").symlink_to(outside / "fly")
    (root / "ant" / "9.png").symlink_to(outside / "fly" / "0.png")
    (root / "bee" / "9.png").symlink_to(root / "bee" / "0.png")
    (root / "ant" / "loop.png").symlink_to("loop.png")
    splits = load(root, size=2)
    counts = {
        name: count
        for _, part in splits
        for name, count in zip(part.class_names, part.counts.tolist(), strict=True)
    }
    assert counts == {"ant": 3, "bee": 4, "cat": 1, "dog": 2, "eel": 2, "fly": 1}
    assert splits.notes == (
        "1 entry passed over: 1 broken link (fetch the files)",
        f"2 links out of {root} followed",
    )


def test_a_folder_reached_through_a_link_is_read(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert sum(len(part) for _, part in load(tmp_path / "link", size=2)) == 10


def test_a_folder_without_images_is_passed_over(root: Path) -> None:
    (root / "ant" / "0.png").unlink()
    (root / "ant" / "1.png").unlink()
    splits = load(root, size=2)
    assert "ant" not in splits.joined().class_names
    assert splits.notes == ("1 folder without images passed over: 'ant'",)


def truncated_image(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(root / "ant" / "1.png")
    content = (root / "ant" / "1.png").read_bytes()
    (root / "ant" / "1.png").write_bytes(content[: len(content) // 2])


def text_as_image(root: Path) -> None:
    (root / "ant" / "1.png").write_text("<html>404</html>")


def two_classes(root: Path) -> None:
    for name in ("ant", "bee", "cat"):
        (root / name).rename(root / f".{name}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated_image, r"ant/1\.png cannot be decoded"),
        (text_as_image, r"ant/1\.png cannot be decoded"),
        (two_classes, "has 2 classes with images: at least 3"),
    ],
)
def test_a_damaged_folder_is_refused(
    root: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(root)
    with pytest.raises(DataError, match=message):
        load(root, size=2)


def test_a_folder_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere", size=2)


def test_two_spellings_of_one_name_are_refused(tmp_path: Path) -> None:
    spellings = {unicodedata.normalize(form, "é"): 1 for form in ("NFC", "NFD")}
    root = make(tmp_path / "data", {**spellings, "b": 1, "c": 1})
    with pytest.raises(DataError, match="two folders named 'é'"):
        load(root, size=2)


def test_size_must_be_positive(root: Path) -> None:
    with pytest.raises(DataError, match="size is 0"):
        load(root, size=0)


@pytest.mark.parametrize("limit", [60, 40])
def test_decompression_bombs_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    # Pillow warns above its limit and raises above twice the limit; the images have 108 pixels.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"\.png is too large"):
        load(root, size=2)


def same(one: Splits, other: Splits) -> bool:
    return all(
        a.class_names == b.class_names and a.images.equal(b.images)
        for (_, a), (_, b) in zip(one, other, strict=True)
    )


def test_images_are_decoded_once_and_follow_their_files(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(root, size=6)
    assert len({part.images.untyped_storage().data_ptr() for _, part in first}) == 1
    with monkeypatch.context() as patch:
        patch.setattr("fewshot_blo.tasks.folder.read_image", None)
        assert same(load(root, size=6), first)
        with pytest.raises(TypeError):
            load(root, size=6, refresh=True)
        with pytest.raises(TypeError):
            load(root, size=7)
    for seed in range(5):  # The cache holds one division at a time.
        found = load(root, size=6, seed=seed).joined()
        for image, label in zip(found.images, found.labels, strict=True):
            place = int(image[0, 0, 0]) // 10
            assert ["ant", "bee", "cat", "dog", "eel"][place] == found.class_names[int(label)]
    Image.new("RGB", (12, 9), (99,) * 3).save(root / "cat" / "0.png")
    assert not same(load(root, size=6), first)


def test_without_a_cache_folder_images_stay_in_memory(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = load(root, size=6)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME.*holds a copy"):
        found = load(root, size=6)
    assert same(found, usual)


def test_classes_csv_in_the_folder_divides_its_classes(root: Path) -> None:
    (root / "classes.csv").write_text("class,split\neel,train\nbee,test\nant,val\n")
    splits = load(root, size=2)
    assert [part.class_names for _, part in splits] == [("eel",), ("ant",), ("bee",)]
    assert splits.notes == ("classes.csv in the folder divides the classes",)
    other = write_csv(root, "class,split\nbee,train\neel,test\nant,val\n")
    assert load(root, size=2, csv=other).train.class_names == ("bee",)


def test_a_wrong_classes_csv_is_an_error_and_one_about_something_else_is_passed_over(
    root: Path,
) -> None:
    file = root / "classes.csv"
    file.write_text("class,split\nant,train\nyak,test\n")
    with pytest.raises(DataError, match=r"classes\.csv, line 3: class 'yak' has no folder with"):
        load(root, size=2)
    file.write_text("class,name\nant,Ant\n")
    splits = load(root, size=2)
    assert sum(len(part.class_names) for _, part in splits) == 5
    assert splits.notes == ("1 entry passed over: 1 .csv",)


def test_a_csv_may_be_named_relative_to_the_folder(root: Path) -> None:
    (root / "lists").mkdir()
    (root / "lists" / "mine.csv").write_text("class,split\neel,train\nbee,test\nant,val\n")
    splits = load(root, size=2, csv="lists/mine.csv")
    assert splits.train.class_names == ("eel",)
    assert "passed over: 1 .csv" not in " ".join(splits.notes)
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        load(root, size=2, csv="none.csv")


def test_enlarged_images_are_said(root: Path) -> None:
    assert load(root, size=9).notes == ()
    Image.new("RGB", (40, 30)).save(root / "cat" / "0.png")
    assert load(root, size=10).notes == (
        "images are enlarged to 10x10: the first one of 4 of 5 classes is smaller, 12x9 the "
        "smallest",
    )
