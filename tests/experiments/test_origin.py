"""A run is reported under the weights that it was begun from, and goes on from no others.

What it was trained on is left out of its tests."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import make_folder, write_recipe

from fewshot_blo.backbones.encoders import pretrained
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.compare import compare
from fewshot_blo.experiments.data import build_sampler
from fewshot_blo.experiments.history import history_of, read_history
from fewshot_blo.experiments.origin import origin_of, start_checkpoints
from fewshot_blo.experiments.origin import starts as digests
from fewshot_blo.experiments.recipes import read_recipe
from fewshot_blo.experiments.report import evaluate_checkpoints
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.experiments.settings import Config, Encoder, config_from
from fewshot_blo.experiments.training import build_start, train_from_config
from fewshot_blo.experiments.unseen import unseen
from fewshot_blo.tasks import ClassDataset, GroupSplits, Splits
from fewshot_blo.tasks.catalogue import CIFARFS, FC100
from fewshot_blo.tasks.reading.class_lists import class_list
from fewshot_blo.training.checkpoint import load, save
from fewshot_blo.training.resumable import CONFIG, same_start
from fewshot_blo.training.run import BEST, LAST

REQUEST = EvaluationRequest(tasks=4, norm="support")
FEW = {"train__steps": 1, "train__validation_tasks": 2, "strategy__inner__steps": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def config(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return read_recipe(write_recipe(tmp_path_factory.mktemp("r") / "r.yaml", images, **FEW))


@pytest.fixture(scope="module")
def starts(config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints of other weights."""
    folder = tmp_path_factory.mktemp("starts")
    for seed in (0, 1):
        trained(replace(config, seed=seed), folder / str(seed))
    return [folder / str(seed) / BEST for seed in (0, 1)]


def trained(config: Config, folder: Path, *, resume: bool = False) -> Path:
    splits = config.data.load()
    train_from_config(config, splits, folder, resume=resume, tested=False, progress=False)
    return folder / LAST


def longer(config: Config, start: Path | str) -> Config:
    steps = config.train.steps + 1
    return replace(config, start_from=str(start), train=replace(config.train, steps=steps))


def saved_start(folder: Path) -> tuple[Any, Any]:
    return (
        yaml.safe_load((folder / CONFIG).read_text())["start_from"],
        load(folder / LAST).config["start_from"],
    )


def test_a_run_goes_on_from_no_other_start(
    config: Config, starts: list[Path], tmp_path: Path
) -> None:
    first, other = starts
    trained(replace(config, start_from=str(first)), tmp_path / "run")
    for start in (other, ""):
        with pytest.raises(CheckpointError, match=r"begun from other weights: start_from was .*0"):
            trained(longer(config, start), tmp_path / "run", resume=True)
        assert saved_start(tmp_path / "run") == (str(first), str(first))
    trained(config, tmp_path / "without")
    with pytest.raises(CheckpointError, match=r"start_from was empty and is .* remove .*without"):
        trained(longer(config, first), tmp_path / "without", resume=True)


@pytest.mark.slow
def test_the_file_of_a_start_may_move_or_be_removed(
    config: Config, starts: list[Path], tmp_path: Path
) -> None:
    first, moved = tmp_path / "first.pt", tmp_path / "moved.pt"
    shutil.copy(starts[0], first)
    trained(replace(config, start_from=str(first)), tmp_path / "run")
    first.rename(moved)
    config = longer(config, moved)
    trained(config, tmp_path / "run", resume=True)
    assert saved_start(tmp_path / "run") == (str(moved), str(moved))
    moved.unlink()
    trained(longer(config, moved), tmp_path / "run", resume=True)
    with pytest.warns(UserWarning, match=r"cannot be told, since .*gone\.pt cannot be read"):
        trained(longer(config, tmp_path / "gone.pt"), tmp_path / "run", resume=True)
    assert saved_start(tmp_path / "run") == (str(moved), str(moved))


@pytest.mark.slow
def test_a_checkpoint_without_digests_goes_on_and_keeps_the_path_of_its_start(
    config: Config, starts: list[Path], tmp_path: Path
) -> None:
    """Of another path it is said that its weights cannot be compared."""
    first, other = starts
    last = trained(replace(config, start_from=str(first)), tmp_path)
    content = torch.load(last, weights_only=True)
    del content["origin"]
    torch.save(content, last)
    config = longer(config, first)
    trained(config, tmp_path, resume=True)
    with pytest.warns(UserWarning, match=r"start_from was .* no digest of them; the run goes on"):
        trained(longer(config, other), tmp_path, resume=True)
    assert saved_start(tmp_path) == (str(first), str(first))


@pytest.mark.slow
def test_a_comparison_reports_no_run_under_a_start_that_it_did_not_have(
    images: Path, tmp_path: Path
) -> None:
    write_recipe(tmp_path / "a.yaml", images, **FEW)
    write_recipe(tmp_path / "b.yaml", images, **FEW, train__learning_rate=0.1)
    path, runs = tmp_path / "x.yaml", tmp_path / "runs"
    recipe = write_recipe(path, images, **FEW, start_from="a.yaml")
    compare([recipe], REQUEST, folder=runs)
    refused = r"begun from other weights: start_from was \S*a/seed0/best.pt .* remove \S*x/seed0 to"
    write_recipe(path, images, **FEW, start_from="b.yaml")
    with pytest.raises(CheckpointError, match=refused):
        compare([recipe], REQUEST, folder=runs)
    assert saved_start(runs / "x" / "seed0") == (str(runs / "a/seed0" / BEST),) * 2
    # The start is trained on: a tenth of the weights would do as another.
    write_recipe(path, images, **FEW, start_from="a.yaml")
    start = runs / "a" / "seed0" / BEST
    loaded = load(start)
    save(replace(loaded, outer={name: p / 10 for name, p in loaded.outer.items()}), start)
    with pytest.raises(CheckpointError, match=refused):
        compare([recipe], REQUEST, folder=runs)


def test_a_run_goes_on_from_no_other_file_of_weights(config: Config, tmp_path: Path) -> None:
    paths = [tmp_path / f"{place}.pt" for place in range(3)]
    for path, value in zip(paths, (1.0, 1.0, 2.0), strict=True):
        torch.save({"w": torch.tensor([value])}, path)
    first, moved, other = (
        replace(config, encoder=Encoder(pretrained, {"name": "timm:a", "weights": str(path)}))
        for path in paths
    )

    def goes_on(now: Config) -> dict[str, Any]:
        saved, own = ({"starts": digests(c, resume=c is now)} for c in (first, now))
        return same_start(saved, own, first.plain(), now.plain(), tmp_path / LAST)

    assert goes_on(moved)["encoder"]["weights"] == str(paths[1])
    with pytest.raises(CheckpointError, match=r"encoder\.weights was \S*0\.pt .* is \S*2\.pt"):
        goes_on(other)
    paths[1].unlink()
    with pytest.warns(UserWarning, match=r"1\.pt cannot be read"):
        assert goes_on(moved)["encoder"]["weights"] == str(paths[0])


@pytest.mark.slow
def test_a_run_goes_on_with_no_other_data(config: Config, images: Path, tmp_path: Path) -> None:
    """Their folder may move."""
    root = tmp_path / "data"
    shutil.copytree(images, root)
    config = replace(config, data=config.data.changed(root=str(root)))
    trained(config, tmp_path / "run")
    config = longer(config, "")
    swapped = sorted(path for path in root.iterdir())[:10]
    swapped[0].rename(root / "x")
    for before, after in zip(swapped[1:], swapped[:-1], strict=True):
        before.rename(after)
    (root / "x").rename(swapped[-1])
    changed = r"begun with other values of the training and validation data"
    with pytest.warns(UserWarning, match=changed):
        trained(config, tmp_path / "run", resume=True)
    config = longer(longer(config, ""), "")
    (root / swapped[0].name).rename(root / "x")
    other = r"begun with other \w+ data: they were .* with other names; give it"
    with pytest.raises(CheckpointError, match=other):
        trained(config, tmp_path / "run", resume=True)
    (root / "x").rename(root / swapped[0].name)
    for path in root.glob("*/0.png"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"they were 10 classes, .* and are 10 classes"):
        trained(config, tmp_path / "run", resume=True)
    moved = replace(config, data=config.data.changed(root=str(images)))
    trained(moved, tmp_path / "run", resume=True)
    assert load(tmp_path / "run" / LAST).config["data"]["root"] == str(images)


def test_training_classes_of_a_folder_that_grew_are_left_out_of_a_test(
    config: Config, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(images, root)
    config = replace(config, data=config.data.changed(root=str(root)))
    trained(config, tmp_path / "run")
    training = set(config.data.load().train.class_names)
    for number in range(8):
        shutil.copytree(root / f"class{number:02}", root / f"more{number}")
    test = set(config.data.load().test.class_names)
    seen = test & training
    assert 0 < len(seen) <= len(test) - 3
    (found,) = evaluate_checkpoints([tmp_path / "run" / BEST], REQUEST).values()
    assert set(found[0].class_names) <= test - seen
    said = capsys.readouterr().out
    assert "Folder is divided otherwise than in training" in said
    assert f"{len(seen)} of the {len(test)} classes are left out because they are" in said
    # Without the record of an earlier version nothing is left out.
    without = load(tmp_path / "run" / BEST)
    save(replace(without, origin={}), tmp_path / "run" / BEST)
    evaluate_checkpoints([tmp_path / "run" / BEST], REQUEST)
    assert "left out" not in capsys.readouterr().out


def test_training_groups_of_a_table_that_grew_are_left_out_of_a_test(tmp_path: Path) -> None:
    data = {"name": "Table", "root": str(tmp_path / "t.csv"), "group": "g", "target": "y"}
    config = config_from({"data": {**data, "seed": 1}})

    def table(groups: int) -> GroupSplits:
        rows = [f"g{group:02},{row},{group}" for group in range(groups) for row in range(8)]
        (tmp_path / "t.csv").write_text("\n".join(["g,x,y", *rows]))
        splits = config.data.load()
        assert isinstance(splits, GroupSplits)
        return splits

    first, now = table(20), table(30)
    tasks = build_sampler(config, first.train, training=False)
    origin = origin_of(config, first, tasks, tasks, resume=False)
    said: list[str] = []
    path = tmp_path / BEST
    found = unseen({path: config}, REQUEST, now, said.append, {path: read_history(origin)})
    seen = {*now.test.group_names} & {*first.train.group_names}
    assert seen
    assert {*found.group_names} == {*now.test.group_names} - seen
    assert said[-1] == f"{len(seen)} of the 6 groups are left out because they are training groups"


def test_what_a_start_was_trained_on_is_followed_through_a_chain(
    config: Config, starts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of CIFAR-FS, of which FC100 holds out training classes: in training and in tests."""
    first = tmp_path / "first.pt"
    of_cifarfs = replace(config, data=CIFARFS()).plain()
    save(replace(load(starts[0]), config=of_cifarfs, origin={}), first)
    last = trained(replace(config, start_from=str(first)), tmp_path / "second")
    third = replace(config, data=FC100(), start_from=str(last))
    with pytest.raises(ConfigurationError, match="begun from a run that was trained on classes"):
        build_start(third, torch.Size([1, 16, 16]))

    history = history_of(load(last))
    assert [one.data.title for one in history.trained] == ["Folder", "CIFAR-FS"]
    names = class_list("fc100", "test")
    images = torch.zeros(len(names), 3, 2, 2, dtype=torch.uint8)
    test = ClassDataset.from_counts(images, dict.fromkeys(names, 1))
    splits = Splits(test.select([0]), test.select([1]), test.select(range(2, 20)))
    request = replace(REQUEST, data="FC100")
    found = unseen({last: config}, request, splits, print, {last: history})
    expected = set(splits.test.class_names) - set(class_list("cifarfs", "train"))
    assert 0 < len(expected) < 18
    assert set(found.class_names) == expected
    assert "of the 18 classes are left out because they are training" in capsys.readouterr().out


def test_a_start_has_not_seen_test_classes_of_a_folder_that_grew(
    config: Config, images: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(images, root)
    config = replace(config, data=config.data.changed(root=str(root)))
    trained(config, tmp_path / "run")
    for number in range(8):
        shutil.copytree(root / f"class{number:02}", root / f"more{number}")
    after = replace(config, start_from=str(tmp_path / "run" / BEST))
    with pytest.raises(ConfigurationError, match=r"\d of the \d+ validation and test classes here"):
        trained(after, tmp_path / "after")


@pytest.mark.slow
def test_that_nothing_is_known_of_a_start_of_an_earlier_version_is_said(
    config: Config, starts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = load(starts[0])
    older = replace(older, config={**older.config, "start_from": "lost.pt"}, origin={})
    save(older, tmp_path / "older.pt")
    unknown = r"was begun from lost\.pt, and what that was trained on is not known"
    with pytest.warns(UserWarning, match=unknown):
        trained(replace(config, start_from=str(tmp_path / "older.pt")), tmp_path / "run")
    for path in (tmp_path / "older.pt", tmp_path / "run" / BEST):
        capsys.readouterr()
        evaluate_checkpoints([path], REQUEST)
        assert re.search(unknown, capsys.readouterr().out)


def test_a_checkpoint_as_file_of_weights_has_a_history(config: Config, starts: list[Path]) -> None:
    content = load(starts[0])
    outer = {f"encoder.body.{name}": p for name, p in content.outer.items()}
    path = starts[0].with_name("weights.pt")
    of_cifarfs = replace(config, data=CIFARFS()).plain()
    save(replace(content, outer=outer, config=of_cifarfs, origin={}), path)
    weights = Encoder(pretrained, {"name": "timm:a", "weights": str(path)})
    ((setting, _, found),) = start_checkpoints(replace(config, encoder=weights))
    with pytest.raises(ConfigurationError, match=r"encoder\.weights is \S*weights\.pt, which was"):
        history_of(found).check_unseen(FC100(), setting, str(path))


@pytest.mark.parametrize("trained", [3, [{}], [{"data": {}, "classes": 3}], [None]])
def test_a_record_of_another_form_is_refused(trained: Any) -> None:
    with pytest.raises(CheckpointError, match="has another form"):
        read_history({"trained": trained})
