"""Data, problems and runs that take a fraction of a second, for tests of the outer loop."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder
from fewshot_blo.tasks import ClassDataset, EpisodicSampler, TaskBatch
from fewshot_blo.training.run import LAST
from fewshot_blo.training.settings import TrainSettings
from fewshot_blo.training.train import TrainResult, train

SETTINGS = TrainSettings(
    steps=6, validate_every=2, validation_tasks=4, log_every=1, chunk=2, learning_rate=1e-2
)


def make_images(classes: int, images: int, *, seed: int = 0, noise: float = 40) -> Tensor:
    """Pictures ``[classes, images, 1, 16, 16]``: a pattern of each class under noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = 255 * (torch.rand(classes, 1, 1, 4, 4, generator=generator) < 0.5)
    patterns = patterns.repeat_interleave(4, -1).repeat_interleave(4, -2)
    noisy = patterns + noise * torch.randn(classes, images, 1, 16, 16, generator=generator)
    return noisy.clamp(0, 255).to(torch.uint8)


def make_dataset(
    classes: int = 6, images: int = 6, *, seed: int = 0, noise: float = 40
) -> ClassDataset:
    """A data set of such pictures."""
    pictures = make_images(classes, images, seed=seed, noise=noise).flatten(0, 1)
    labels = torch.arange(classes).repeat_interleave(images)
    return ClassDataset(pictures, labels, tuple(f"class{seed}/{c}" for c in range(classes)))


def make_folder(root: Path, classes: int = 16, images: int = 6) -> Path:
    """A folder of such pictures; it divides into 10, 3 and 3 classes."""
    for c, pictures in enumerate(make_images(classes, images)):
        (root / f"class{c:02}").mkdir(parents=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture[0].numpy()).save(root / f"class{c:02}" / f"{i}.png")
    return root


def make_sampler(
    dataset: ClassDataset, *, tasks: int = 3, seed: int = 0, **options: Any
) -> EpisodicSampler:
    """3-way 1-shot tasks with 2 queries a class unless told otherwise."""
    options = {"way": 3, "shot": 1, "query": 2, **options}
    return EpisodicSampler(dataset, tasks=tasks, seed=seed, **options)


class Noise(nn.Module):
    """A user's own random layer, which knows nothing of keys."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x) if self.training else x


def make_encoder() -> nn.Module:
    """Conv4 with dropout and a random layer of a user's own."""
    torch.manual_seed(0)
    return nn.Sequential(Conv4(hidden=8), nn.Dropout(0.2), Noise())


def make_problem() -> FewShotProblem:
    """A shared encoder whose outer variables are not all weights."""
    return SharedEncoder(make_encoder(), learn_prox=True, backend="loop")


def make_initialization() -> FewShotProblem:
    """The same network as an initialisation for 3-way tasks."""
    return Initialization(classifier(make_encoder(), 8, 3), backend="loop")


STRATEGIES: dict[str, Strategy] = {
    "unroll": Unroll(InnerSteps(2, SGD(0.1))),
    "implicit": Implicit(InnerSteps(3, SGD(0.3)), ConjugateGradient(3)),
    # Large tolerance: its schedules advance at once.
    "penalty": Penalty(InnerSteps(3, Adam(1e-2)), epsilon=1e6).for_training(),
}


class SignallingSampler(EpisodicSampler):
    """Draws the training tasks of ``run``, and sends this process signals before batch ``at``."""

    def __init__(self, at: int, *signals: int) -> None:
        super().__init__(make_dataset(), way=3, shot=1, query=2, tasks=3)
        self.at, self.signals = at, signals

    def batch(self, index: int, embeddings: Tensor | None = None) -> TaskBatch:
        for signal in self.signals if index == self.at else ():
            os.kill(os.getpid(), signal)
        return super().batch(index, embeddings)


def run(
    folder: Path,
    strategy: str = "implicit",
    *,
    tasks: Any = None,
    settings: TrainSettings = SETTINGS,
    resume: bool = False,
    **options: Any,
) -> TrainResult:
    """A small run from the same start every time."""
    problem = options.pop("problem", None) or make_problem()
    if resume:
        torch.manual_seed(1234)  # What follows must come from the checkpoint.
    return train(
        problem,
        options.pop("method", STRATEGIES[strategy]),
        tasks or make_sampler(make_dataset()),
        options.pop("validation", None) or make_sampler(make_dataset(5, seed=1), seed=1),
        folder=folder,
        settings=settings,
        adaptation=options.pop("adaptation", InnerSteps(2, SGD(0.1))),
        resume=resume,
        progress=options.pop("progress", False),
        **options,
    )


def checkpoint_data(folder: Path, name: str = LAST) -> dict[str, Any]:
    """What a checkpoint file holds."""
    data: dict[str, Any] = torch.load(folder / name, weights_only=True)
    return data


def log_records(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the machine."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        for name in ("tasks_per_second", "memory/peak_gib", "seconds"):
            record.pop(name, None)
    return records


def assert_identical(a: Any, b: Any, where: str = "") -> None:
    """Equal bit for bit, in trees of tensors and plain data."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_identical(left, right, f"{where}/{index}")
    else:
        assert a == b, where


def options(folder: Path, **changes: object) -> list[str]:
    """Options of a small run of the command line on a folder of ``make_folder``.

    A change to None leaves an option out.
    """
    settings: dict[str, object] = {
        "data": "Folder",
        "data.root": folder,
        "data.size": 16,
        "data.color": "false",
        "episodes.way": 3,
        "episodes.query": 2,
        "episodes.validation_query": 3,
        "episodes.tasks": 3,
        "encoder.hidden": 8,
        "problem.backend": "loop",
        "strategy.inner.steps": 2,
        "adaptation.steps": 2,
        "train.steps": 4,
        "train.validate_every": 2,
        "train.validation_tasks": 4,
        "train.log_every": 1,
        "train.schedule": "constant",
        "device": "cpu",
    }
    settings.update({name.replace("__", "."): value for name, value in changes.items()})
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]


def write_recipe(path: Path, folder: Path, **changes: object) -> Path:
    """A recipe with the options of a small run, under a title and a source."""
    settings: dict[str, Any] = {}
    few = {"train__validate_every": 1, "train__steps": 2}
    for option in options(folder, **{**few, **changes}):
        name, _, value = option.removeprefix("--").partition("=")
        *sections, key = name.split(".")
        place = settings
        for section in sections:
            inner = place.get(section, {})
            place[section] = inner if isinstance(inner, dict) else {"name": inner}
            place = place[section]
        before, given = place.get(key), yaml.safe_load(value)
        place[key] = {**before, "name": given} if isinstance(before, dict) else given
    path.write_text(f"# A small run.\n# Nobody et al.\n{yaml.safe_dump(settings)}")
    return path
