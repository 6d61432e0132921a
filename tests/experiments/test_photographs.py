"""The recipes for photographs take a step on images of 84x84, of a folder and of miniImageNet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewshot_blo.commands.main import main
from fewshot_blo.experiments.data import build_sampler
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.recipes import read_recipe
from fewshot_blo.experiments.settings import Config
from fewshot_blo.experiments.training import with_classes
from fewshot_blo.tasks import miniimagenet
from fewshot_blo.tasks.reading.class_lists import SPLITS
from fewshot_blo.training.checkpoint import load
from fewshot_blo.training.run import BEST
from fewshot_blo.training.step import hypergradient

ROOT = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(path for path in ROOT.glob("photographs-*/*.yaml") if path.stem != "simpleshot")
NAMES = {"baseline", "fomaml", "implicit-cg", "penalty", "protonet", "r2d2", "simpleshot"}
CLASSES = {"train": 22, "val": 7, "test": 7}


def write(root: Path, *, in_splits: bool) -> None:
    """Class folders of images of 84x84, six a class, with miniImageNet's names of classes."""
    generator = torch.Generator().manual_seed(0)
    lines = ["class,split"]
    for split in SPLITS:
        for name in miniimagenet.PUBLISHED.classes(split)[: CLASSES[split]]:
            folder = root / (split if in_splits else "") / name
            folder.mkdir(parents=True)
            lines.append(f"{name},{split}")
            for number in range(6):
                noise = torch.randint(256, (6, 6, 3), generator=generator, dtype=torch.uint8)
                image = Image.fromarray(noise.numpy()).resize((84, 84), Image.Resampling.NEAREST)
                image.save(folder / f"{number}.jpg")
    if not in_splits:
        (root / "classes.csv").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "photographs"
    write(root, in_splits=False)
    return root


def quick(path: Path, root: Path) -> Config:
    """The recipe with few queries and a small network: the step is tested, not the figures."""
    config = read_recipe(path, root=str(root))
    return replace(
        config,
        device="cpu",
        encoder=config.encoder.changed(hidden=2),
        problem=config.problem.changed(backend="batched"),
        episodes=replace(config.episodes, query=1),
    )


def test_recipes_of_both_shots() -> None:
    for shot in (1, 5):
        assert {path.stem for path in ROOT.glob(f"photographs-5w{shot}s/*")} == NAMES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_step_of_each_recipe(path: Path, photographs: Path) -> None:
    config = quick(path, photographs)
    splits = config.data.load()
    config = with_classes(config, splits)
    tasks = build_sampler(config, splits.train, training=True).batch(0)
    assert tasks.flat["support_x"].shape[-3:] == (3, 84, 84)
    problem = build_problem(config, splits.train.shape, trained=False)
    for _, strategy in config.strategy.phases:
        step = hypergradient(problem, strategy, strategy.init(), tasks)
        step.check_finite("recipe")
        assert any(bool(g.any()) for g in step.gradient.values())


@pytest.mark.slow
def test_simpleshot_with_the_encoder_of_a_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "mini", in_splits=True)
    words = f"--data=MiniImageNet --data.root={tmp_path / 'mini'} --data.partial=true".split()
    words += ["--encoder.hidden=2", "--episodes.query=1", "--episodes.validation_query=1"]
    words += ["--train.validation_tasks=2", "--test_tasks=0"]
    recipes, base = ROOT / "photographs-5w1s", tmp_path / "base"
    given = [f"--config={recipes / 'baseline.yaml'}", "--train.steps=1", *words]
    assert main(["train", str(base), *given]) == 0
    given = [f"--config={recipes / 'simpleshot.yaml'}", f"--start_from={base / BEST}", *words]
    assert main(["train", str(tmp_path / "run"), *given]) == 0
    assert capsys.readouterr().out.count("22 for train, 7 for validation, 7 for test") == 2
    start, result = (load(run / BEST).outer for run in (base, tmp_path / "run"))
    # With ``unit`` the encoder is a part of a network that normalizes its features.
    assert all(start[name.removeprefix("encoder.")].equal(x) for name, x in result.items())
