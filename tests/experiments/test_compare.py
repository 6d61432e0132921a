"""Comparisons of several methods, and the recipes that come with the project."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_runs import make_folder, write_recipe

from fewshot_blo.backbones.encoders import pretrained
from fewshot_blo.commands import main as cli
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.evaluation.counts import Counts
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.experiments.compare import compare
from fewshot_blo.experiments.data import build_sampler
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.recipes import read_recipe, with_seed
from fewshot_blo.experiments.report import evaluate_checkpoints
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.experiments.seeds import check_seeds_alone_differ
from fewshot_blo.experiments.settings import Config
from fewshot_blo.experiments.table import Row, comparison
from fewshot_blo.experiments.training import train_from_config
from fewshot_blo.heads import RelationHead
from fewshot_blo.networks import Conv4
from fewshot_blo.objectives import AUROC, R2, MeanSquaredError
from fewshot_blo.records.tables import deviation
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training import train as train_module
from fewshot_blo.training import validation
from fewshot_blo.training.checkpoint import Checkpoint, load, random_state
from fewshot_blo.training.run import BEST, LAST, PROVENANCE
from fewshot_blo.training.step import hypergradient

RECIPES = sorted(
    path
    for path in (Path(__file__).resolve().parents[2] / "recipes").rglob("*.yaml")
    if path.parent.name != "studies"
)
REQUEST = EvaluationRequest(tasks=8)
OWN = {"encoder": "small_runs:make_encoder", "encoder__hidden": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A shared encoder and an initialisation."""
    place = tmp_path_factory.mktemp("recipes")
    return [
        write_recipe(place / "proto.yaml", folder, strategy__inner__steps=0, adaptation__steps=0),
        write_recipe(place / "maml.yaml", folder, problem="Initialization"),
    ]


@pytest.fixture(scope="module")
def compared(recipes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("compared")
    words = ["compare", *map(str, recipes), f"--folder={place}", "--seeds", "0", "1", "--tasks=8"]
    assert cli.main(words) == 0
    return place


def test_table_and_picture(compared: Path) -> None:
    with (compared / "table.csv").open(encoding="utf-8") as file:
        proto, maml = csv.DictReader(file)
    assert (proto["method"], maml["method"]) == ("proto", "maml")
    assert proto["seeds"] == maml["seeds"] == "2"
    assert float(proto["steps"]) == 2
    assert float(proto["seconds"]) > 0
    text = (compared / "table.md").read_text()
    for record, norm in itertools.product((proto, maml), ("transductive", "support", "running")):
        value, interval = float(record[norm]), float(record[f"{norm} interval"])
        assert f"{value:.2f} ± {interval:.2f} [" in text
    assert "8 tasks (3-way 1-shot 3 queries a class, seed 1000)" in text
    difference = float(maml["transductive"]) - float(proto["transductive"])
    assert float(maml["transductive difference"]) == pytest.approx(difference)
    with Image.open(compared / "accuracy.png") as picture:
        assert picture.format == "PNG"
        assert picture.size[1] == 300  # Two methods.


def test_a_budget_of_steps_for_all_recipes(recipes: list[Path]) -> None:
    assert read_recipe(recipes[0]).train.steps == 2
    assert read_recipe(recipes[0], max_steps=1).train.steps == 1
    assert read_recipe(recipes[0], max_steps=9).train.steps == 2
    with pytest.raises(ConfigurationError, match="max_steps is 0"):
        read_recipe(recipes[0], max_steps=0)


@pytest.mark.slow
def test_the_mean_over_seeds(compared: Path) -> None:
    (row,) = compare([compared / "proto"], REQUEST, folder=compared / "again")
    each = [
        compare([compared / "proto" / seed], REQUEST, folder=compared / seed)[0]
        for seed in ("seed0", "seed1")
    ]
    accuracies = [single.tasks("support") for single in each]
    mean = row.tasks("support")
    assert mean is not None
    assert accuracies[0] is not None
    assert accuracies[1] is not None
    torch.testing.assert_close(mean, (accuracies[0] + accuracies[1]) / 2)
    spread = torch.stack([a.mean() for a in accuracies if a is not None]).std()
    assert deviation(row.seed_means("support")) == pytest.approx(float(spread))
    assert not torch.equal(accuracies[0], accuracies[1])


def test_further_metrics_have_columns(tmp_path: Path) -> None:
    def run(r2: float, auroc: float) -> list[Evaluation]:
        others = {
            R2().quantity: torch.tensor([r2, r2]),
            AUROC().quantity: torch.tensor([auroc] * 2),
        }
        values = torch.tensor([1.0, 2.0])
        error = MeanSquaredError().quantity
        return [
            Evaluation("support", "", 1, values, [], Counts.none(), metric=error, others=others)
        ]

    path = tmp_path / "best.pt"
    rows = [
        Row("one", [path], [run(0.5, 0.8)]),
        Row("two", [path] * 2, [run(0.0, 1.0), run(1.0, 0.0)]),
    ]
    text = comparison([row.record(rows[0]) for row in rows], rows[0].evaluations[0][0])
    header, _, *lines = text.splitlines()
    assert [cell.strip() for cell in header.split("|")][6:8] == ["R2", "AUROC (%)"]
    assert [line.split("|")[6].strip() for line in lines[:2]] == ["0.5 ± 0"] * 2
    assert [line.split("|")[7].strip() for line in lines[:2]] == ["80.00 ± 0.00", "50.00 ± 0.00"]
    assert "Further metrics are in norm mode support" in text


@pytest.mark.slow
def test_the_difference_of_each_seed(compared: Path, tmp_path: Path) -> None:
    """Its deviation is over pairs of runs with one seed; unlike numbers of seeds have none."""
    maml, proto = [compared / name for name in ("maml", "proto")]
    pairs = []
    for seed in ("seed0", "seed1"):
        rows = compare([proto / seed], REQUEST, folder=tmp_path / "a")
        rows += compare([maml / seed], REQUEST, folder=tmp_path / "b")
        pairs.append(rows[1].seed_means("running")[0] - rows[0].seed_means("running")[0])
    both = compare([proto, maml], REQUEST, folder=tmp_path / "both")
    record = both[1].record(both[0])
    spread = float(torch.tensor(pairs, dtype=torch.float64).std())
    assert record["running difference"] == pytest.approx(50 * sum(pairs))
    assert record["running difference sd over seeds"] == pytest.approx(100 * spread)
    assert "running difference sd over seeds" not in both[0].record(both[0])
    unlike = compare([proto, maml / "seed0"], REQUEST, folder=tmp_path / "unlike")
    assert "running difference sd over seeds" not in unlike[1].record(unlike[0])


@pytest.mark.slow
def test_finished_runs_are_not_trained_again(
    compared: Path, recipes: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = (BEST, PROVENANCE)  # The second says which command made the first.
    files = [path for name in names for path in compared.glob(f"*/seed*/{name}")]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert len(before) == 8
    compare(recipes, REQUEST, folder=compared, seeds=(0, 1), progress=False)
    assert capsys.readouterr() == ("", "")
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_goes_on_after_an_interrupt(
    recipes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ["compare", str(recipes[0]), f"--folder={tmp_path}", "--tasks=8"]
    plain = validation.validate

    def interrupted(*arguments: object) -> Evaluation:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train_module, "validate", interrupted)
    assert cli.main(words) == 130
    assert not (tmp_path / "table.md").exists()
    monkeypatch.setattr(train_module, "validate", plain)
    assert cli.main(words) == 0
    assert (tmp_path / "table.md").exists()
    assert "step 2: validation" in capsys.readouterr().out


def test_recipes_may_name_networks_of_ones_own(folder: Path, tmp_path: Path) -> None:
    own = write_recipe(tmp_path / "own.yaml", folder, **OWN)
    (row,) = compare([own], REQUEST, folder=tmp_path / "runs")
    with pytest.raises(ConfigurationError, match="would call 'small_runs:make_encoder'"):
        compare(row.checkpoints, REQUEST, folder=tmp_path / "again")


@pytest.mark.slow
def test_a_recipe_that_starts_from_another(folder: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path / "first.yaml", folder, problem="Pretraining")
    settings = {"start_from": "first.yaml", "problem__unit": True, "problem__centre": True}
    second = write_recipe(
        tmp_path / "second.yaml", folder, train__steps=0, strategy__inner__steps=0, **settings
    )
    (row,) = compare([second], REQUEST, folder=tmp_path / "runs")
    start = load(tmp_path / "runs" / "first" / "seed0" / BEST)
    (end,) = (load(path) for path in row.checkpoints)
    encoder = {n.removeprefix("encoder."): p for n, p in end.outer.items()}
    assert encoder
    for name, p in encoder.items():
        assert torch.equal(p, start.outer[name])
    assert bool(end.buffers["centre.mean"].any())
    # The first one is trained, and not trained again.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"runs/*/*/{BEST}")}
    assert len(before) == 2
    compare([second], REQUEST, folder=tmp_path / "runs")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    recipe = read_recipe(second)
    splits = recipe.data.load()
    with pytest.raises(ConfigurationError, match=r"is the recipe first\.yaml: compare trains it"):
        train_from_config(recipe, splits, tmp_path / "alone", resume=False, tested=False)


def test_sources_that_are_none(recipes: list[Path], tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no best\.pt"):
        compare([tmp_path], REQUEST, folder=tmp_path / "table")
    with pytest.raises(ConfigurationError, match="two sources have the same name: proto, proto"):
        compare([recipes[0], recipes[0]], REQUEST, folder=tmp_path / "table")
    bad = write_recipe(tmp_path / "bad.yaml", folder, problem="nothing")
    with pytest.raises(ConfigurationError, match=r"recipe .*bad\.yaml"):
        compare([bad], REQUEST, folder=tmp_path / "table")
    with pytest.raises(ConfigurationError, match=r"absent\.yaml cannot be read"):
        compare([tmp_path / "absent.yaml"], REQUEST, folder=tmp_path / "table")


def saved(path: Path, recipe: Path, **changes: Any) -> Path:
    """The checkpoint of a run that took no step, with settings of a recipe."""
    config = with_seed(read_recipe(recipe), changes.pop("seed", 0)).plain()
    config["train"] |= changes.pop("train", {})
    path.parent.mkdir(parents=True)
    settings = {**config, **changes}
    checkpoints.save(Checkpoint(2, settings, {}, {}, {}, {}, {}, {}, random_state()), path)
    return path


def test_runs_of_different_methods_are_not_seeds(recipes: list[Path], tmp_path: Path) -> None:
    for name, recipe in zip(("a", "b"), recipes, strict=True):
        saved(tmp_path / "runs" / name / BEST, recipe, seed=int(name == "b"))
    match = r"different settings, a and b \(.*adaptation.steps is 0 and 2"
    with pytest.raises(ConfigurationError, match=match):
        compare([tmp_path / "runs"], REQUEST, folder=tmp_path / "table")
    assert not (tmp_path / "table").exists()
    same = [saved(tmp_path / f"{seed}" / BEST, recipes[0], seed=seed) for seed in (1, 2)]
    check_seeds_alone_differ(tmp_path, same)


def test_unfinished_runs_are_named(recipes: list[Path], tmp_path: Path) -> None:
    """Steps and time of the finished ones do not stand for them."""
    values, paths = torch.tensor([1.0, 0.0]), []
    for seed, steps in ((0, 2), (1, 9)):  # Of which both have taken two.
        paths.append(saved(tmp_path / f"seed{seed}" / BEST, recipes[0], train={"steps": steps}))
        shutil.copy(paths[-1], paths[-1].with_name(LAST))
    timed = {"step": 2, "tasks_per_second": 1.0, "seconds": 1.0, "memory/peak_gib": 1.0}
    paths[0].with_name("log.jsonl").write_text(json.dumps(timed))
    found = [Evaluation("support", "", 1, values, [], Counts.none())]
    both, one = Row("both", paths, [found, found]), Row("one", paths[:1], [found])
    records = [both.record(both), one.record(both)]
    assert "steps" not in records[0]
    assert (records[1]["steps"], "unfinished" in records[1]) == (2, False)
    assert "Not finished: both (seed1 at step 2 of 9)." in comparison(records, found[0])


def test_another_split_is_named() -> None:
    values = torch.tensor([1.0, 0.0])
    found = Evaluation("support", "3-way", 1, values, [], Counts.none(), drawn_from="train split")
    row = Row("method", [Path("a")], [[found]])
    assert "2 tasks (3-way, train split)" in comparison([row.record(row)], found)


@pytest.mark.parametrize("words", ["--seeds 3", "--max_steps 1"])
def test_settings_of_recipes_need_a_recipe(
    words: str, recipes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved(tmp_path / "run" / BEST, recipes[0])
    for shard in ((), ("--shard=1/1",)):
        table = f"--folder={tmp_path / 'table'}"
        assert cli.main(["compare", str(run), table, *words.split(), *shard]) == 1
        assert "and no source is a recipe" in capsys.readouterr().err
    assert not (tmp_path / "table").exists()


def test_a_seed_is_given_once(recipes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"seeds is \[0, 1, 0\]: .* give each seed once"):
        compare(recipes[:1], REQUEST, folder=tmp_path / "runs", seeds=(0, 1, 0))
    assert not (tmp_path / "runs").exists()


def test_seeds_have_the_same_norm_modes() -> None:
    values = torch.tensor([1.0, 0.0])
    found = [Evaluation(norm, "", 1, values, [], Counts.none()) for norm in ("support", "running")]
    with pytest.raises(ConfigurationError, match="norm modes support and a in support, running"):
        Row("method", [Path("a"), Path("b")], [found, found[:1]])


@pytest.mark.parametrize(
    ("changes", "request_changes", "match"),
    [
        ({"episodes__shot": 2}, {}, r"the tasks are 3-way 2-shot 3 queries a class for"),
        ({"data__seed": 1}, {}, "on one data set only"),
        ({"problem": "Initialization"}, {"views": "shifts"}, "the problem is Initialization"),
        ({"problem": "nothing"}, {}, "other"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    changes: dict[str, Any],
    request_changes: dict[str, Any],
    match: str,
    recipes: list[Path],
    folder: Path,
    tmp_path: Path,
) -> None:
    other = write_recipe(tmp_path / "other.yaml", folder, **changes)
    request = replace(REQUEST, **request_changes)
    with pytest.raises(ConfigurationError, match=match):
        compare([recipes[0], other], request, folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_trained_on_one_data_set_and_tested_on_another(
    compared: Path, recipes: list[Path], tmp_path: Path
) -> None:
    """The data that recipes were trained on are not what they are tested on then."""
    request = replace(REQUEST, data="Glyphs", size=16, norm="support", views="mirrored")
    shutil.copytree(compared / "proto", tmp_path / "proto")
    (row,) = compare([recipes[0]], request, folder=tmp_path)
    file = compared / "proto" / "seed0" / BEST
    (expected,) = evaluate_checkpoints([file], request).values()
    assert torch.equal(row.evaluations[0][0].values, expected[0].values)
    assert row.evaluations[0][0].class_names == expected[0].class_names
    text = (tmp_path / "table.md").read_text()
    assert "seed 1000, test split of Glyphs, 2 views (mirrored))" in text


def random_tasks(config: Config, image: torch.Size) -> TaskBatch:
    """One task of the recipe's size, of random images."""
    episodes = config.episodes
    assert isinstance(episodes.way, int)
    assert isinstance(episodes.shot, int)
    assert isinstance(episodes.query, int)
    way, generator = episodes.way, torch.Generator().manual_seed(0)

    def part(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.rand(1, way * count, *image, generator=generator)
        return images, torch.arange(way).repeat_interleave(count)[None]

    return TaskBatch(*part(episodes.shot), *part(episodes.query), torch.arange(way)[None])


@pytest.mark.sampled(5)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_give_hypergradients(path: Path) -> None:
    config = read_recipe(path)
    small = config.encoder.changed(hidden=8)
    if config.encoder.kind is pretrained:
        small = small.changed(size=32)
    few = config.problem.changed(backend="batched", classes=64)
    head = few.settings.get("head")
    if isinstance(head, RelationHead) and config.encoder.kind is Conv4:
        few = few.changed(head=RelationHead(channels=8))
    config = replace(config, encoder=small, problem=few, device="cpu")
    if config.data.channels:
        image = torch.Size([1, 28, 28] if config.data.channels == 1 else [3, 32, 32])
        problem, tasks = build_problem(config, image, trained=False), random_tasks(config, image)
    else:  # Functions, which need no files.
        split = config.data.load().train
        problem = build_problem(config, split.shape, outputs=split.outputs, trained=False)
        tasks = build_sampler(config, split, training=True).batch(0)
    for _, strategy in config.strategy.phases:
        step = hypergradient(problem, strategy, strategy.init(), tasks)
        step.check_finite("recipe")
        assert any(bool(g.any()) for g in step.gradient.values())
