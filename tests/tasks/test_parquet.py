"""Parquet files, as Hugging Face's library writes them and as others do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import DataError, Splits
from fewshot_blo.tasks.catalogue import CIFARFS, FC100, MiniImageNet, Parquet
from fewshot_blo.tasks.parquet import load
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

NAMES = ["ant", "bee", "cat", "dog", "eel"]
SPLIT = {"train": ["ant", "bee", "eel"], "validation": ["cat"], "test": ["dog"]}


@pytest.fixture(autouse=True)
def own_cache(own_cache_home: Path) -> None:
    """A cache folder of its own."""


def png(grey: int) -> bytes:
    stream = BytesIO()
    Image.new("L", (6, 4), grey).save(stream, "PNG")
    return stream.getvalue()


def grey(name: str, number: int) -> int:
    return 40 * NAMES.index(name) + number


def write(
    file: Path,
    names: Sequence[str | None],
    features: dict[str, Any] | None = None,
    labels: Sequence[Any] | None = None,
    image: str = "image",
    label: str = "label",
) -> None:
    """Two images of each class, in turns, and the metadata that the library datasets writes."""
    every = [(name, number) for number in range(2) for name in names]
    structs = [
        {"bytes": png(grey(name, k) if name else 255), "path": f"{name}_{k}.png"}
        for name, k in every
    ]
    values = [NAMES.index(name) if name else -1 for name, _ in every] if labels is None else labels
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(structs, kind), label: pa.array(values)})
    if features is None:
        features = {image: {"_type": "Image"}, label: {"names": NAMES, "_type": "ClassLabel"}}
    info = {"huggingface": json.dumps({"info": {"features": features}})} if features else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(info), file)


def stored(root: Path, pattern: str = "data/{}-00000-of-00001.parquet", **given: Any) -> Path:
    for split, names in SPLIT.items():
        write(root / pattern.format(split), names, **given)
    return root


def assert_divided(splits: Splits, names: dict[str, list[str]] = SPLIT) -> None:
    for split, part in splits:
        assert list(part.class_names) == names[split]
        expected = [grey(name, number) for name in names[split] for number in range(2)]
        assert part.images[:, 0, 0, 0].tolist() == expected


@pytest.mark.parametrize("pattern", ["data/{}-00000-of-00001.parquet", "default/{}/0000.parquet"])
def test_files_of_the_hub(pattern: str, tmp_path: Path) -> None:
    root = stored(tmp_path, pattern)
    for _ in range(2):  # Decoded, and from the cache.
        splits = load(root, size=2)
        assert_divided(splits)
        assert splits.notes == ()
    assert load(root, size=3, color=False).train.images.shape == (6, 1, 3, 3)
    assert Parquet(str(root), size=2).load().test.images.equal(splits.test.images)


def test_the_library_datasets_writes_such_files(tmp_path: Path) -> None:
    """Its own files as the oracle, in a process of its own, for it imports much."""
    program = """
import io, sys
from pathlib import Path
from PIL import Image
from datasets import ClassLabel, Dataset, Features, Image as Picture
names = ["ant", "bee", "cat", "dog", "eel"]
features = Features({"image": Picture(), "label": ClassLabel(names=names)})
for split, own in (("train", [0, 1, 4]), ("validation", [2]), ("test", [3])):
    labels = own * 2
    images = [Image.new("L", (6, 4), 40 * n + k // len(own)) for k, n in enumerate(labels)]
    data = Dataset.from_dict({"image": images, "label": labels}, features=features)
    data.to_parquet(Path(sys.argv[1]) / f"{split}-00000-of-00001.parquet")
"""
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        pytest.skip(f"datasets cannot be imported: {error}")
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    assert_divided(load(tmp_path, size=2))


def test_cache_folders_of_the_hub(tmp_path: Path) -> None:
    root = tmp_path / "datasets--timm--mini-imagenet"
    stored(root / "snapshots" / "new")
    stored(root / "snapshots" / "old")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("new")
    assert_divided(load(root, size=2))


@pytest.mark.parametrize(
    "given",
    [
        {"features": {}, "image": "img", "label": "fine_label"},
        {"features": {"img": {"_type": "Image"}}, "image": "img", "label": "target"},
    ],
)
def test_columns_are_found_without_features(given: dict[str, Any], tmp_path: Path) -> None:
    names = {split: [str(NAMES.index(name)) for name in own] for split, own in SPLIT.items()}
    splits = load(stored(tmp_path, **given), size=2)
    assert [list(part.class_names) for _, part in splits] == list(names.values())


def test_labels_of_text_and_images_of_bytes(tmp_path: Path) -> None:
    for split, names in SPLIT.items():
        images = [png(grey(name, k)) for k in range(2) for name in names]
        table = pa.table({"picture": images, "species": [*names, *names]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    assert_divided(load(tmp_path, size=2))


@pytest.mark.parametrize("by", ["fractions", "csv", "file"])
def test_splits_of_images_are_refused_and_divided(by: str, tmp_path: Path) -> None:
    """As timm/mini-imagenet: all classes in each of train, validation and test."""
    root = tmp_path / "data"
    for split in ("train", "validation", "test"):
        write(root / f"{split}-00000.parquet", NAMES)
    with pytest.raises(DataError, match="class 'ant' is in both train and validation, so that"):
        load(root, size=2)
    if by == "csv":
        table = tmp_path / "classes.csv"
        lines = [f"{name},{split}" for split, names in SPLIT.items() for name in names]
        table.write_text("\n".join(["class,split", *lines]))
        splits = load(root, csv=table, size=2)
        assert [list(part.class_names) for _, part in splits] == list(SPLIT.values())
    elif by == "fractions":
        splits = load(root, split="fractions", seed=1, size=2)
        assert sorted(splits.joined().class_names) == NAMES
        assert set(splits.joined().counts.tolist()) == {6}
    else:
        splits = load(root / "train-00000.parquet", split="fractions", size=2)
        assert set(splits.joined().counts.tolist()) == {2}


def test_labels_that_start_anew_in_each_split(tmp_path: Path) -> None:
    """As where integers without names are counted within each split."""
    for split, names in SPLIT.items():
        numbers = [*range(len(names))] * 2
        write(tmp_path / f"{split}.parquet", names, {"image": {"_type": "Image"}}, numbers)
    with pytest.raises(DataError, match="or to separate if the labels of each split start anew"):
        load(tmp_path, size=2)
    splits = load(tmp_path, split="separate", size=2)
    assert splits.train.class_names == ("train/0", "train/1", "train/2")
    assert splits.test.class_names == ("test/0",)
    assert splits.train.images[:, 0, 0, 0].tolist() == [0, 1, 40, 41, 160, 161]


def test_published_lists(tmp_path: Path) -> None:
    names = sorted(name for split in SPLITS for name in class_list("cifarfs", split))
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    write(tmp_path / "train.parquet", ["ant"] * 50, features, [*range(100)])
    splits = load(tmp_path, split="fc100", size=2)
    for split, (_, part) in zip(SPLITS, splits, strict=True):
        assert list(part.class_names) == class_list("fc100", split)
    with pytest.raises(DataError, match="lacks 100 classes of miniimagenet, the first is 'n0153"):
        load(tmp_path, split="miniimagenet", size=2)
    with pytest.raises(DataError, match="split is 'cifar': it must be stored, separate"):
        load(tmp_path, split="cifar", size=2)


def test_rows_without_a_class_and_left_out_classes_are_said(tmp_path: Path) -> None:
    root = stored(tmp_path / "data")
    write(root / "data" / "train-00001-of-00002.parquet", ["bee", None])
    splits = load(root, size=2)
    assert splits.notes == ("2 entries passed over: 2 rows without a class",)
    assert splits.train.counts.tolist() == [2, 4, 2]
    table = tmp_path / "classes.csv"
    table.write_text("class,split\nant,train\nbee,val\ncat,test\n")
    assert load(root, csv=table, size=2).notes[1] == (
        "2 of 5 classes passed over, for the division lists others"
    )


def test_without_a_cache_folder_images_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="holds a copy"):
        assert_divided(load(stored(tmp_path / "data"), size=2))


def text(root: Path) -> None:
    (root / "data" / "test-00000-of-00001.parquet").write_text("no parquet")


def corrupt(root: Path) -> None:
    file = root / "data" / "test-00000-of-00001.parquet"
    table = pa.table({"image": [{"bytes": b"no image", "path": "a.png"}], "label": [3]})
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(info), file)


def damaged_inside(root: Path) -> None:
    file = root / "data" / "test-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    content[4:40] = bytes(36)  # The first page of images; the schema at the end is whole.
    file.write_bytes(content)


def of_numbers(root: Path) -> None:
    for split in SPLIT:
        table = pa.table({"image": [[[0, 300], [-1, 0]]], "label": [split]})
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet")


def elsewhere(root: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": None, "path": "../../secret.png"}], kind)
    (root.parent / "secret.png").write_bytes(png(1))
    for split in SPLIT:
        pq.write_table(
            pa.table({"image": image, "label": [split]}),
            root / "data" / f"{split}-00000-of-00001.parquet",
        )


def no_label(**given: Any) -> Callable[[Path], None]:
    return lambda root: write(root / "data" / "test-00000-of-00001.parquet", ["dog"], **given)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (text, "cannot be read as parquet"),
        (corrupt, r"in row 0 of .*test-00000-of-00001\.parquet cannot be decoded"),
        (damaged_inside, r"column image cannot be read \(.*\): download it again"),
        (of_numbers, r"has no column of images; its columns are image \(list<.*set image to one"),
        (elsewhere, r"is the file '\.\./\.\./secret\.png', which is not in"),
        (no_label(labels=[7, 7]), "row 0: the label is 7, but there are 5 class names"),
        (no_label(label="mark", features={}), "has no column of labels|other columns"),
        (no_label(labels=[[1], [2]], features={}), "has no column of labels"),
        (lambda root: write(root / "data" / "more.parquet", ["ant"]), "belongs to no split"),
    ],
)
def test_what_is_wrong_is_named(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    root = stored(tmp_path / "root")
    damage(root)
    with pytest.raises(DataError, match=message) as error:
        load(root, size=2)
    assert "\n" not in str(error.value)


def test_nested_lists_are_pixels(tmp_path: Path) -> None:
    for split, names in SPLIT.items():
        values = [[[grey(name, k)] * 3] * 3 for k in range(2) for name in names]
        table = pa.table({"image": values, "label": [*names, *names]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    assert_divided(load(tmp_path, image="image", label="label", size=2))
    pq.write_table(pa.table({"image": [[[300]]], "label": ["dog"]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"in row 0 of .*test\.parquet is no image: leave"):
        load(tmp_path, image="image", size=2)


def test_several_columns_are_named(tmp_path: Path) -> None:
    names = {"names": NAMES, "_type": "ClassLabel"}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"one": [0, 1], "two": [1, 0], "mark": [0.5, 0.5]}
    table = pa.table({"image": pa.array([{"bytes": png(n), "path": ""} for n in (1, 2)], kind)})
    for name, values in columns.items():
        table = table.append_column(name, [values])
    features = {"image": {"_type": "Image"}, "one": names, "two": names}
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(info), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"has several columns of labels.*two \(int64\).*set label"):
        load(tmp_path, size=2)
    with pytest.raises(DataError, match=r"row 0: the label is .* it must be an integer or text"):
        load(tmp_path, label="mark", size=2)
    with pytest.raises(DataError, match="has no column 'three'; its columns are image, one"):
        load(tmp_path, label="three", size=2)
    with pytest.raises(DataError, match="has no class in validation"):
        load(tmp_path, label="two", size=2)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path)
    for module in ("pyarrow.parquet", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=r"need pyarrow: pip install '\.\[formats\]'"):
        load(tmp_path, size=2)
    with pytest.raises(ConfigurationError, match=r"needs huggingface_hub; pip install '\.\[hf"):
        load(None, repository="timm/mini-imagenet", size=2)


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def snapshot_download(repository: str, **given: Any) -> str:
        asked.append((repository, given["revision"]))
        if repository == "nobody/none":
            raise OSError("404 Client Error\nmore")
        empty = given["revision"] == "main" or repository == "a/text"
        folder = tmp_path / ("empty" if empty else "full")
        folder.mkdir(exist_ok=True)
        return str(folder if empty else stored(folder))

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert_divided(Parquet(repository="a/pictures", size=2).load())
    assert asked == [("a/pictures", "main"), ("a/pictures", "refs/convert/parquet")]
    with pytest.raises(DataError, match=r"nobody/none failed \(OSError: 404 Client Error\): try"):
        load(None, repository="nobody/none", size=2)
    assert not Parquet(repository="a/pictures").lacks_files
    assert Parquet().lacks_files
    assert_divided(Parquet(str(tmp_path / "full"), repository="nobody/none", size=2).load())
    with pytest.raises(DataError, match="a/text has no parquet files"):
        load(None, repository="a/text", size=2)


@pytest.mark.parametrize(
    ("trained", "now", "seen"),
    [
        (Parquet("a"), Parquet("a", size=20), False),
        (Parquet("a"), Parquet("a", split="fractions"), True),
        (Parquet("a", split="fractions"), Parquet("a", split="fractions", seed=1), True),
        (Parquet("a", split="miniimagenet"), MiniImageNet("b"), False),
        (Parquet("a", split="cifarfs"), FC100("b"), True),
        (CIFARFS("b"), Parquet("a", split="fc100"), True),
        (Parquet("a", csv="x"), Parquet("a", csv="y/../x"), False),
        (Parquet(repository="a/b"), Parquet("a/b", split="fractions"), False),
    ],
)
def test_which_hold_out_classes_that_a_run_has_seen(trained: Any, now: Any, seen: bool) -> None:
    assert now.holds_out_classes_of(trained) is seen
