"""Each data set of the catalogue tells the truth about what it loads, before it is loaded."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_runs import make_folder

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.any_data_set import DataSet, Drawing, ImageDataSet
from fewshot_blo.tasks.catalogue import (
    CIFARFS,
    DATA_SETS,
    FC100,
    Folder,
    Functions,
    Glyphs,
    MiniImageNet,
    Omniglot,
    Parquet,
    Table,
    TieredImageNet,
)
from fewshot_blo.tasks.families import Harmonic
from fewshot_blo.tasks.protocols import Episodic
from fewshot_blo.tasks.reading.class_lists import SPLITS

every_kind = pytest.mark.parametrize("kind", DATA_SETS, ids=lambda kind: kind.__name__)


def write_class_folders(root: Path, data: DataSet) -> Path:
    """One small image for each published class."""
    for split in SPLITS:
        for name in data.published_classes(split):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (2, 2)).save(root / split / name / "0.png")
    return root


def write_parquet(root: Path) -> Path:
    """One small image for each of three splits."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    root.mkdir()
    for split in SPLITS:
        stream = BytesIO()
        Image.new("RGB", (2, 2)).save(stream, "PNG")
        table = pa.table({"image": [stream.getvalue()], "label": [split]})
        parquet.write_table(table, root / f"{split}.parquet")
    return root


def with_files(data: ImageDataSet, folder: Path, request: pytest.FixtureRequest) -> ImageDataSet:
    """The data set with a folder that holds real files, or small ones in their layout."""
    kind = type(data)
    if kind in (MiniImageNet, TieredImageNet):
        return data.changed(root=str(write_class_folders(folder, data)), partial=True)
    if kind is Folder:
        return data.changed(root=str(make_folder(folder, classes=5, images=1)))
    if kind is Glyphs:
        return data
    if kind is Parquet:
        return data.changed(root=str(write_parquet(folder)))
    root = request.getfixturevalue("data_root") / ("omniglot" if kind is Omniglot else "cifarfs")
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    return data.changed(root=str(root))


@every_kind
def test_it_loads_as_it_is_or_says_what_it_needs(kind: type[DataSet]) -> None:
    data = kind()
    if not hasattr(data, "root"):
        assert all(split.describe() for _, split in data.load())
        return
    with pytest.raises(ConfigurationError) as error:
        data.load()
    assert str(error.value) == f"root is empty: {data.title} needs {data.files}; set root"


@every_kind
def test_a_folder_without_its_files_is_named(kind: type[DataSet], tmp_path: Path) -> None:
    if hasattr(kind(), "root") and kind is not Table:
        with pytest.raises(DataError, match=str(tmp_path)):
            kind().changed(root=str(tmp_path)).load()


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "data",
    [
        Glyphs(),
        Omniglot(rotations=False),
        Omniglot(split="background", mirrors=True),
        MiniImageNet(size=8),
        TieredImageNet(size=8),
        CIFARFS(),
        FC100(),
        Folder(size=10),
        Folder(color=False, seed=3, size=6),
        Parquet(size=10),
        Parquet(color=False, size=6),
    ],
    ids=repr,
)
def test_what_is_said_of_it_is_true_of_what_it_loads(
    data: ImageDataSet, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data = with_files(data, tmp_path / "files", request)
    for split, (_, loaded) in zip(SPLITS, data.load(), strict=True):
        assert loaded.images.shape[1:] == data.image_shape
        names = {data.published_name(name) for name in loaded.class_names}
        published = data.published_classes(split)
        assert len(published) == len(set(published))
        assert set(published) == (names if published else set())
        assert bool(published) == (type(data) not in (Glyphs, Folder, Parquet))


@pytest.mark.parametrize("kind", [kind for kind in DATA_SETS if issubclass(kind, ImageDataSet)])
def test_settings_are_those_of_the_function_that_loads(kind: type[ImageDataSet]) -> None:
    """With the same defaults, where the function has one."""
    name = "cifarfs" if kind is FC100 else kind.__name__.lower()
    parameters = inspect.signature(
        importlib.import_module(f"fewshot_blo.tasks.{name}").load
    ).parameters
    settings = {field.name: field.default for field in fields(kind)}
    assert settings.keys() <= parameters.keys()
    assert settings.keys() >= parameters.keys() - {"variant", "fractions", "progress"}
    for name, default in settings.items():
        expected = parameters[name].default
        if expected is not inspect.Parameter.empty:
            assert default == ("" if expected is None else expected), name


@every_kind
def test_every_setting_is_documented(kind: type[DataSet]) -> None:
    documented = inspect.getdoc(kind) or ""
    for field in fields(kind):
        assert f"\n    {field.name}: " in documented, field.name


@every_kind
def test_settings_are_values(kind: type[DataSet]) -> None:
    """Loaded data are kept by their settings, so equal ones have one hash, and none change."""
    assert {kind(): 1}[kind()] == 1
    others: dict[Any, tuple[str, Any]] = {Functions: ("family", Harmonic()), Table: ("seed", 9)}
    name, value = others.get(kind, ("size", 99))
    assert kind() != kind().changed(**{name: value})
    with pytest.raises(FrozenInstanceError):
        setattr(kind(), name, value)


def test_modules_of_data_sets_are_imported_when_they_load() -> None:
    program = (
        "import sys, fewshot_blo.tasks.catalogue as catalogue\n"
        "for kind in catalogue.DATA_SETS: kind().channels, kind().published_classes('val')\n"
        "modules = ('glyphs', 'omniglot', 'miniimagenet', 'tieredimagenet', 'cifarfs', 'folder', "
        "'parquet')\n"
        "print([name for name in modules if f'fewshot_blo.tasks.{name}' in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_folder(tmp_path / "images", classes=3, images=1)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    lines = [f"{name},{split}" for name, split in zip(names, SPLITS, strict=True)]
    (tmp_path / "classes.csv").write_text("\n".join(["class,split", *lines]))
    data = Folder("~/images", csv="~/classes.csv", size=4)
    assert [part.class_names for _, part in data.load()] == [(name,) for name in names]
    assert data.images == Folder(str(tmp_path / "images")).images
    assert data.division == Folder(csv=str(tmp_path / "classes.csv")).division
    with pytest.raises(DataError, match="~nobody-of-this-name/images is not a folder"):
        Folder("~nobody-of-this-name/images").load()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Glyphs(), Glyphs(20), True),
        (Glyphs(), Omniglot(), False),
        (Omniglot("a"), Omniglot("b", split="background", rotations=False), True),
        (CIFARFS("a"), FC100("a"), False),
        (MiniImageNet("a"), TieredImageNet("a"), False),
        (Folder("a"), Folder("a/../a", seed=1, color=False, size=3), True),
        (Folder("a"), Folder("b"), False),
        (Folder("a"), Omniglot("a"), False),
        (Parquet("a"), Parquet("a/../a", split="fractions", image="x"), True),
        (Parquet("a"), Folder("a"), False),
    ],
)
def test_which_are_the_same_images(one: DataSet, other: DataSet, same: bool) -> None:
    assert (one.images == other.images) is same


@pytest.mark.parametrize(
    ("trained", "now", "seen"),
    [
        (Glyphs(), Glyphs(20), False),
        (CIFARFS("a"), CIFARFS("b", size=28), False),
        (CIFARFS(), FC100(), True),
        (FC100(), CIFARFS(), True),
        (TieredImageNet(), MiniImageNet(), True),
        (CIFARFS(), MiniImageNet(), False),
        (Omniglot(mirrors=True), Omniglot(), False),
        (Omniglot(rotations=False), Omniglot(), False),
        (Omniglot(split="background"), Omniglot(), True),
        (Glyphs(), Omniglot(), False),
        (Folder("a"), Folder("a", size=20), False),
        (Folder("a"), Folder("a", seed=1), True),
        (Folder("a", csv="x"), Folder("a"), True),
        (Folder("a", csv="x"), Folder("a", csv="y"), True),
        (Folder("a", csv="x"), Folder("a", csv="y/../x", seed=1), False),
        (Folder("a"), Folder("b", seed=1), False),
    ],
)
def test_which_hold_out_classes_that_a_run_has_seen(
    trained: DataSet, now: DataSet, seen: bool
) -> None:
    assert now.holds_out_classes_of(trained) is seen


def test_no_file_is_read_for_a_division_of_another_name() -> None:
    """A checkpoint may come from anyone."""
    other: Any = "vinyals/../../reading"
    with pytest.raises(ConfigurationError, match="must be one of vinyals, background"):
        Omniglot(split=other)
    assert Folder(csv="cifarfs").published_classes("train") == ()


def test_settings_that_a_data_set_lacks_are_left_out() -> None:
    data = Omniglot("a", split="background", mirrors=True, size=20)
    assert data.changed() == data
    assert data.changed(root="b", color=False) == replace(data, root="b")
    assert data.changed(size=9, mirrors=False) == replace(data, size=9, mirrors=False)
    assert Glyphs().changed(root="b", size=20, mirrors=False) == Glyphs(20)
    folder = Folder("a", csv="x", color=False)
    assert folder.changed(root="b", csv="") == replace(folder, root="b", csv="")


def test_fractions_are_part_of_the_division() -> None:
    """Checkpoints of before have none: theirs are the usual ones."""
    usual, other = Folder("a"), Folder("a", fractions=(0.5, 0.25, 0.25))
    assert usual.division == "seed 0"
    assert other.division == "fractions 0.5 0.25 0.25, seed 0"
    assert other.holds_out_classes_of(usual)


def drawing(**changes: Any) -> Drawing:
    found = Drawing(Episodic(), 3, 4, 2, 0, torch.device("cpu"), torch.float64, None)
    return replace(found, **changes)


def test_functions_and_tables_are_sources_of_tasks_without_classes(tmp_path: Path) -> None:
    rows = [f"g{row % 6},{row},{row / 7}" for row in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["group,x,y", *rows]))
    table = Table(root=str(tmp_path / "t.csv"), group="group", target="y")
    every: tuple[Any, ...] = (Functions(Harmonic()), table)
    for data in every:
        for name, split in data.load():
            batch = data.sampler(split, drawing()).batch(0)
            assert (batch.way, batch.support_y.shape, batch.query_y.shape) == (
                0,
                (2, 3, split.outputs),
                (2, 4, split.outputs),
            ), name
            assert batch.support_x.shape[2:] == split.shape
            assert batch.support_x.dtype == torch.float64
        with pytest.raises(DataError, match=r"shot is \(1, 5\): tasks without classes need one"):
            data.sampler(split, drawing(shot=(1, 5)))
        assert not data.has_classes
    with pytest.raises(ConfigurationError, match=r"group is empty: set data\.group"):
        Table(root=str(tmp_path / "t.csv")).load()
