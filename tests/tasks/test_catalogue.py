"""The rows of the catalogue of data sets."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_folder

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.catalogue import (
    CIFARFS,
    DATA_SETS,
    FC100,
    DataSet,
    Folder,
    Glyphs,
    MiniImageNet,
    Omniglot,
    TieredImageNet,
)
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list

OF_FILES = [kind for kind in DATA_SETS if kind.needs_files]


def test_every_row_has_a_module_with_its_settings() -> None:
    for kind in DATA_SETS:
        module = importlib.import_module(f"fewshot_blo.tasks.{kind.module}")
        known = inspect.signature(module.load).parameters
        row = kind()
        assert known.keys() >= row.options().keys(), kind
        assert ("root" in known) == bool(row.places()) == kind.needs_files


def test_names_are_told_apart() -> None:
    assert len({kind.__name__.lower() for kind in DATA_SETS}) == len(DATA_SETS)


@pytest.mark.parametrize("kind", OF_FILES)
def test_a_folder_that_is_not_named(kind: type[DataSet]) -> None:
    with pytest.raises(ConfigurationError, match=f"{kind.__name__} needs the folder of its files"):
        kind().load()


@pytest.mark.parametrize("kind", OF_FILES)
def test_files_that_are_missing(kind: type[DataSet], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\w"):
        kind().changed(root=str(tmp_path / "absent")).load()


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_folder(tmp_path / "images", classes=3, images=1)
    assert Omniglot("~/images").places() == (tmp_path / "images",)
    found = Folder("~/images", size=16).load().train
    assert found.images.shape[1:] == (3, 16, 16)
    lines = ["class,split", *(f"class0{c},{s}" for c, s in enumerate(("train", "val", "test")))]
    (tmp_path / "split.csv").write_text("\n".join(lines) + "\n")
    divided = Folder("~/images", csv="~/split.csv", size=16).load()
    assert [part.class_names for _, part in divided] == [("class00",), ("class01",), ("class02",)]


@pytest.mark.parametrize("kind", [kind for kind in DATA_SETS if kind is not Folder])
def test_usual_sizes_are_those_of_the_modules(kind: type[DataSet]) -> None:
    module = importlib.import_module(f"fewshot_blo.tasks.{kind.module}")
    usual = inspect.signature(module.load).parameters["size"].default
    assert kind().image_shape[1:] == (usual, usual)
    assert kind().changed(size=50).image_shape[1:] == (50, 50)


@pytest.mark.parametrize(
    "data",
    [
        Glyphs(),
        Glyphs(size=20),
        Folder(),
        Folder(color=False, size=20),
        Omniglot(size=12),
        CIFARFS(),
    ],
    ids=lambda data: f"{type(data).__name__}-{data.image_shape}",
)
def test_shapes_of_images(data: DataSet, tmp_path: Path, request: Any) -> None:
    if isinstance(data, Folder):
        data = data.changed(root=str(make_folder(tmp_path, classes=3, images=1)))
    elif data.needs_files:
        data = data.changed(root=str(request.getfixturevalue("data_root")))
    for _, part in data.load():
        assert tuple(part.images.shape[1:]) == data.image_shape


def test_published_classes() -> None:
    counts = {kind: [len(kind().published_classes(part)) for part in SPLITS] for kind in DATA_SETS}
    assert counts[CIFARFS] == [64, 16, 20]
    assert counts[FC100] == [60, 20, 20]
    assert counts[MiniImageNet] == [64, 16, 20]
    assert counts[TieredImageNet] == [351, 97, 160]
    assert counts[Omniglot] == [1028, 172, 423]
    assert counts[Glyphs] == counts[Folder] == [0, 0, 0]
    background = Omniglot(split="background")
    assert set(background.published_classes("train")) != set(Omniglot().published_classes("train"))


def test_published_classes_are_those_of_the_images(data_root: Path) -> None:
    for kind, data_set in ((CIFARFS, "cifarfs"), (FC100, "fc100")):
        for name, part in zip(SPLITS, kind(str(data_root)).load(), strict=True):
            assert set(part[1].class_names) == set(class_list(data_set, name))
            assert set(kind().published_classes(name)) == set(part[1].class_names)


def test_which_settings_are_of_the_same_images(tmp_path: Path) -> None:
    root, other = str(tmp_path / "a"), str(tmp_path / "b")
    assert Omniglot(root, split="background", mirrors=True).images == Omniglot(other).images
    assert CIFARFS(root).images == CIFARFS(other, size=28).images
    assert len({kind(*[""] * kind.needs_files).images for kind in DATA_SETS}) == len(DATA_SETS)
    assert Folder(root).images == Folder(f"{root}/../a", size=20, color=False).images
    assert Folder(root).images != Folder(other).images
    assert Folder(root).division == Folder(other).division
    assert Folder(root).division != Folder(root, seed=1).division
    assert Folder(root).division != Folder(root, csv="split.csv").division


def test_settings_that_a_data_set_has_not_are_left_out() -> None:
    assert Glyphs().changed(size=20, root="a", mirrors=True) == Glyphs(20)
    assert Omniglot("a").changed(mirrors=True) == replace(Omniglot("a"), mirrors=True)
