"""Class-incremental Omniglot: 1,200 base characters, then 423 new ones, 47 at a time.

The base characters are those of Vinyals' training and validation split, the new ones its test
split; 5 drawings of each are for training and 15 for test, as in the index lists of C-FSCIL
(Hersche et al., 2022, arXiv 2203.16588), whose accuracy drops by less than 1.6 points. Classes are
means of features. Encoders are released checkpoints, whose training has seen all 20 drawings of the
base characters, or one trained here on the 5 training drawings of the base characters alone:

    python benchmarks/incremental.py --root DIR checkpoints/released/omniglot-5w1s-unroll/best.pt
    python benchmarks/incremental.py --root DIR --steps 2000
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from fewshot_blo import Conv4, SharedEncoder, Unroll
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.evaluation.incremental import class_incremental, training_images
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.settings import config_from
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.tasks import Augmentation, ClassDataset, EpisodicSampler, omniglot
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.settings import TrainSettings
from fewshot_blo.training.train import train

BASE, SESSION, SHOT = 1200, 47, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=0, help="outer steps of an encoder of its own")
    parser.add_argument("--seeds", type=int, default=3, help="choices of training drawings")
    parser.add_argument("--folder", type=Path, default=Path("runs/incremental"))
    arguments = parser.parse_args()
    dataset = omniglot.load(arguments.root, rotations=False).joined()
    for path in arguments.checkpoints:
        start = time.perf_counter()
        report(str(path), features_of(path, dataset), dataset, range(arguments.seeds), start)
    if arguments.steps:
        # Its training drawings are those of one seed, and so are its sessions.
        start = time.perf_counter()
        features = trained(dataset, arguments.steps, arguments.folder)
        report(f"{arguments.steps} steps on 5 drawings", features, dataset, range(1), start)


def report(name: str, features: Tensor, dataset: ClassDataset, seeds: range, start: float) -> None:
    """Prints the sessions of the first seed, and the drop of each."""
    sessions = [
        class_incremental(features, dataset, base=BASE, session=SESSION, shot=SHOT, seed=seed)
        for seed in seeds
    ]
    drops = ", ".join(f"{100 * each.drop:.2f}" for each in sessions)
    print(f"\n{name}, {time.perf_counter() - start:.0f} s\n{sessions[0]}", flush=True)
    print(f"drops of seeds {seeds.start} to {seeds.stop - 1}: {drops}", flush=True)


def features_of(path: Path, dataset: ClassDataset) -> Tensor:
    """Features of all images by the encoder of a checkpoint."""
    saved = checkpoints.load(path)
    problem = build_problem(config_from(saved.config), dataset.images.shape[1:], trained=False)
    saved.restore(problem)
    return embed(embedder(problem), dataset.images)


def trained(dataset: ClassDataset, steps: int, folder: Path) -> Tensor:
    """Features by Prototypical Networks on the training drawings of the base characters."""
    rows = training_images(dataset, base=BASE, shot=SHOT, seed=0) & (dataset.labels < BASE)
    names = dataset.class_names[:BASE]
    seen = ClassDataset(dataset.images[rows], dataset.labels[rows], names).with_rotations()
    torch.manual_seed(0)
    problem = SharedEncoder(Conv4(channels=1), start="prototypes")
    augment = Augmentation(rotation=15, crop=2)
    training = EpisodicSampler(seen, way=60, shot=1, query=SHOT - 1, tasks=1, augment=augment)
    validation = EpisodicSampler(seen, way=20, shot=1, query=SHOT - 1, tasks=1, seed=1)
    settings = TrainSettings(steps=steps, validation_tasks=50, validate_every=steps)
    none = InnerSteps(0, SGD(0.5))
    train(
        problem,
        Unroll(none),
        training,
        validation,
        settings=settings,
        adaptation=none,
        folder=folder,
    )
    return embed(embedder(problem), dataset.images)


def embedder(problem: FewShotProblem) -> torch.nn.Module:
    found = problem.embedder
    if found is None:
        raise SystemExit("the checkpoint's problem has no encoder that all tasks share")
    return found


if __name__ == "__main__":
    main()
