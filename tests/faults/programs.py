"""Small runs of every command that writes, which can be run again after a fault."""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from small_images import NAMES, network, picture
from small_runs import make_folder, options, write_recipe

from fewshot_blo.commands import main as cli
from fewshot_blo.errors import CheckpointError
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving import solve
from fewshot_blo.solving.problem import PlainProblem

NETWORK = "small_networks:network"


@dataclass(frozen=True)
class Program:
    """Something that writes into a folder.

    Attributes:
        name: the command.
        prepare: puts what it finds there into the folder.
        run: runs it in the folder, or goes on after a fault; returns the exit status.
        versions: each start writes files of its own beside earlier ones.
    """

    name: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], int]
    versions: bool = False


def programs(place: Path, names: Collection[str] = ()) -> list[Program]:
    """The programs; their data are written to ``place``.

    Args:
        place: folder for pictures and recipes.
        names: names of those that are wanted; all by default.
    """
    found = _of_runs(place)
    if not names or not {program.name for program in found}.issuperset(names):
        found += _of_classifiers(place)
    return [program for program in found if not names or program.name in names]


def _of_runs(place: Path) -> list[Program]:
    images = make_folder(place / "classes")
    recipe = place / "study.yaml"
    recipe.write_text(yaml.safe_dump(_STUDY))
    few = {"train__steps": 3, "train__validate_every": 1}
    recipes = [
        write_recipe(place / "a.yaml", images, **few),
        write_recipe(place / "b.yaml", images, train__learning_rate=0.1, **few),
    ]
    return [
        Program("train", _nothing, partial(_train, images)),
        Program("solve", _nothing, _solve),
        Program("study", _nothing, lambda f: cli.main(_words("study", recipe, f"--folder={f}"))),
        Program(
            "compare",
            _nothing,
            lambda f: cli.main(_words("compare", *recipes, "--tasks=4", f"--folder={f}")),
        ),
    ]


def _of_classifiers(place: Path) -> list[Program]:
    module: Any = types.ModuleType("small_networks")
    module.network = network
    sys.modules["small_networks"] = module
    pictures = _pictures(place / "pictures")
    classifier = place / "fine" / "classifier.pt"
    fine = _words("finetune", pictures, f"--backbone={NETWORK}", "--views=one")
    assert cli.main([*fine, f"--output={classifier.parent}"]) == 0
    old, new = partial(_old, classifier), place / "new"
    new.mkdir()
    for number in range(3):
        picture(number % 2, 50 + number).save(new / f"{number}.png")
    return [
        Program("finetune", old, lambda f: cli.main([*fine, f"--output={f}"]), versions=True),
        Program(
            "predict --add_class",
            old,
            lambda f: _predict(f, f"--add_class={new}"),
            versions=True,
        ),
        Program(
            "predict --output",
            old,
            lambda f: _predict(f, str(new), f"--output={f / 'labels.csv'}"),
        ),
    ]


_INNER = {"steps": 3, "rule": {"name": "SGD", "step_size": 0.1}}
_ROW = {"steps": 4, "optimizer": "sgd", "every": 2}
_STUDY = {
    "study": "synthetic",
    "settings": {"example": 1},
    "rows": {
        "unrolling": {"strategy": {"name": "Unroll", "inner": _INNER}, **_ROW},
        "value": {"strategy": {"name": "ValueFunction", "inner": _INNER, "lam": 10.0}, **_ROW},
    },
}


def _words(*words: object) -> list[str]:
    return [str(word) for word in words]


def _nothing(folder: Path) -> None:
    folder.mkdir()


def _old(classifier: Path, folder: Path) -> None:
    """A classifier of before, and labels."""
    folder.mkdir()
    shutil.copy(classifier, folder / "classifier.pt")
    (folder / "labels.csv").write_text("of before")


def _pictures(root: Path) -> Path:
    for colour, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for number in range(4):
            picture(colour, number).save(root / name / f"{number}.png")
    return root


def _train(images: Path, folder: Path) -> int:
    words = ["train", f"--run={folder}", *options(images)]
    return cli.main([*words, "--resume"] if (folder / "last.pt").exists() else words)


def _predict(folder: Path, *words: str) -> int:
    return cli.main(["predict", str(folder / "classifier.pt"), *words, f"--own={NETWORK}"])


def _solve(folder: Path) -> int:
    problem = PlainProblem(
        {"u": torch.ones(3)},
        {"v": torch.zeros(3)},
        lambda v, u: (v["v"] - u["u"]).square().sum(),
        lambda v, u: (v["v"] - 0.5).square().sum(),
    )
    try:
        solution = solve(
            problem,
            Unroll(InnerSteps(3, SGD(0.3))),
            partial(torch.optim.Adam, lr=0.1),
            steps=6,
            every=2,
            folder=folder,
            resume=(folder / "last.pt").exists(),
            progress=False,
        )
    except (CheckpointError, OSError) as error:  # As a script would.
        print(error)
        return 1
    torch.save(solution.outer, folder / "solution.pt")
    return 0
