"""Few-shot accuracy of a pretrained backbone: prototypes, and ways to fine-tune.

CIFAR-FS, 5-way, 15 queries a class. Each row has a few settings (size of images, step size,
regularisation, views); for each shot the one with the highest accuracy on validation classes is
taken to the test classes, all on the same tasks.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot_blo.backbones import Backbone, load_backbone
from fewshot_blo.evaluation.evaluate import embed, evaluate
from fewshot_blo.evaluation.result import Evaluation, paired_difference
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.machine.allocator import keep_freed_memory
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.provenance import provenance
from fewshot_blo.tasks import ClassDataset, EpisodicSampler, cifarfs


class Option(NamedTuple):
    """A way to fine-tune, and what the network sees: pixels, and how much they are sharpened."""

    candidate: Candidate
    size: int
    sharpen: float = 0.0


WAY, QUERY = 5, 15
LARGER = (160, 192, 224)


def rows(size: int) -> dict[str, list[Option]]:
    """The settings of every row, at one size unless the row is about sizes."""
    prototypes, ridge = Candidate("", head="cosine"), Candidate("", head="ridge", lam=0.3)
    steps = [InnerSteps(50, Adam(size)) for size in (1e-3, 3e-3, 1e-2)]
    last = Candidate("", adapts="last_blocks")
    low_rank = Candidate("", adapts="low_rank", blocks=2)
    roots, mirrored = replace(ridge, power=0.5), replace(ridge, views="mirrored")
    crops = replace(ridge, views="crops")
    return {
        "prototypes": [Option(prototypes, size)],
        "prototypes, centred": [Option(prototypes, size)],
        "ridge": [Option(replace(ridge, lam=lam), size) for lam in (0.03, 0.1, 0.3, 1.0)],
        "linear head": [
            Option(Candidate("", inner=InnerSteps(50, SGD(step))), size)
            for step in (0.3, 1.0, 3.0, 10.0)
        ],
        "last block": [Option(replace(last, blocks=1, inner=inner), size) for inner in steps],
        "last 3 blocks": [Option(replace(last, blocks=3, inner=inner), size) for inner in steps],
        "low rank, last 2 blocks": [
            Option(replace(low_rank, inner=inner), size) for inner in steps
        ],
        "sharpened, ridge": [Option(ridge, size, sharpen) for sharpen in (0.25, 0.5, 1.0)],
        "larger images, prototypes": [Option(prototypes, larger) for larger in LARGER],
        "larger images, ridge": [Option(ridge, larger) for larger in LARGER],
        "2 views, larger images, ridge": [Option(mirrored, larger) for larger in LARGER],
        "sharpened, larger images, ridge": [Option(ridge, larger, 0.5) for larger in LARGER],
        "sharpened, larger images, ridge on square roots": [
            Option(roots, larger, 0.5) for larger in LARGER
        ],
        "3 sizes, ridge": [Option(replace(ridge, views="scales"), size)],
        "3 sizes, sharpened, ridge on square roots": [
            Option(replace(roots, views="scales"), 192, 0.5)
        ],
        "10 views, ridge": [
            Option(replace(crops, lam=lam), larger)
            for larger, lam in product((128, 160), (0.1, 0.3, 1.0))
        ],
    }


def options(row: str, size: int) -> list[Option]:
    """The settings of a row by name."""
    return [
        option._replace(candidate=replace(option.candidate, name=row)) for option in rows(size)[row]
    ]


@dataclass
class Embedded:
    """What the frozen layers make of all images of a data set, for the options that share them.

    Attributes:
        backbone: the network.
        dataset: the images.
        base: images of training classes, whose mean feature a centred row subtracts.
        seconds_per_image: that the frozen layers took.
    """

    backbone: Backbone
    dataset: ClassDataset
    base: ClassDataset
    key: tuple[object, ...] = ()
    features: Tensor | None = None
    base_mean: Tensor | None = None
    seconds_per_image: float = 0.0

    def measure(self, option: Option, shot: int, tasks: int) -> Evaluation:
        """Accuracy on tasks of this data set."""
        candidate = option.candidate
        seen = {"size": option.size, "sharpen": option.sharpen}
        problem = candidate.problem(
            self.backbone.preprocessed(**seen), self.dataset.images.shape[1:]
        )
        key = (option.size, option.sharpen, candidate.frozen)
        if self.features is None or self.key != key:
            self.features = self.base_mean = None  # Freed before the next are made.
            start = time.perf_counter()
            self.key, self.features = key, embed(problem.network, self.dataset.images)
            seconds = time.perf_counter() - start
            self.seconds_per_image = seconds / len(self.dataset.images)
        features = self.features
        if candidate.name.endswith("centred"):
            if self.base_mean is None:
                self.base_mean = embed(problem.network, self.base.images).mean(0)
            features = features - self.base_mean
        sampler = EpisodicSampler(
            self.dataset, way=WAY, shot=shot, query=QUERY, tasks=32, seed=1000
        )
        return evaluate(
            problem,
            sampler,
            tasks=tasks,
            norm="support",
            adaptation=candidate.inner,
            embeddings=features,
        )


def main() -> None:
    """Measures, prints a table and writes JSON after every row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of CIFAR-FS")
    parser.add_argument("--backbone", default="torchvision:mobilenet_v3_small")
    parser.add_argument("--weights", help="file of weights, where not the library's own")
    parser.add_argument("--size", type=int, default=128, help="pixels that images are resized to")
    parser.add_argument("--interpolation", default="bicubic")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--tasks", type=int, default=600, help="test tasks")
    parser.add_argument("--validation_tasks", type=int, default=400)
    parser.add_argument("--validation_images", type=int, default=200, help="of each class")
    parser.add_argument("--test_images", type=int, default=600, help="of each class")
    names = list(rows(128))
    parser.add_argument("--only", nargs="+", default=names, choices=names)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    keep_freed_memory()
    splits = cifarfs.load(arguments.root)
    backbone = load_backbone(arguments.backbone, weights=arguments.weights)
    backbone = backbone.preprocessed(interpolation=arguments.interpolation)
    base = first(splits.train, 20)
    validation = Embedded(backbone, first(splits.validation, arguments.validation_images), base)
    test = Embedded(backbone, first(splits.test, arguments.test_images), base)
    records: list[dict[str, Any]] = []
    prototypes: dict[int, Evaluation] = {}
    for row in dict.fromkeys(["prototypes", *arguments.only]):
        tried = options(row, arguments.size)
        accuracy = {
            (place, shot): validation.measure(option, shot, arguments.validation_tasks).mean
            for place, option in enumerate(tried)
            for shot in arguments.shots
        }
        for shot in arguments.shots:
            place = max(range(len(tried)), key=lambda p: accuracy[p, shot])
            found = test.measure(tried[place], shot, 1)  # The images are embedded.
            start = time.perf_counter()
            found = test.measure(tried[place], shot, arguments.tasks)
            seconds = time.perf_counter() - start
            prototypes.setdefault(shot, found)
            record = described(row, shot, tried[place], found, prototypes[shot])
            embedding = WAY * (shot + QUERY) * test.seconds_per_image
            record["milliseconds_per_task"] = 1000 * seconds / arguments.tasks
            record["milliseconds_to_embed_a_task"] = 1000 * embedding
            record["validation"] = [accuracy[p, shot] for p in range(len(tried))]
            records.append(record)
            print(line(record), flush=True)
        if arguments.output:
            content = {
                "backbone": backbone.name,
                "weights": Path(arguments.weights).name if arguments.weights else "",
                "interpolation": arguments.interpolation,
                "tasks": arguments.tasks,
                "provenance": provenance(torch.device("cpu")),
                "rows": records,
            }
            with atomic_write(arguments.output) as file:
                file.write(json.dumps(content, indent=1).encode())


def first(dataset: ClassDataset, count: int) -> ClassDataset:
    """The first so many images of each class."""
    rows = [
        (dataset.labels == c).nonzero().flatten()[:count] for c in range(len(dataset.class_names))
    ]
    kept = torch.cat(rows)
    return ClassDataset(dataset.images[kept], dataset.labels[kept], dataset.class_names)


def described(
    row: str, shot: int, option: Option, found: Evaluation, base: Evaluation
) -> dict[str, Any]:
    """What was chosen, its accuracy on test classes, and what it gains over prototypes."""
    candidate = option.candidate
    rule: Any = candidate.inner.rule
    gain, half = paired_difference(base, found)
    return {
        "method": row,
        "shot": shot,
        "size": option.size,
        "sharpen": option.sharpen,
        "power": candidate.power,
        "views": candidate.views,
        "step_size": rule.step_size,
        "lam": candidate.lam,
        "accuracy": found.mean,
        "interval": found.interval,
        "gain": gain,
        "gain_interval": half,
    }


def line(record: dict[str, Any]) -> str:
    """A record for a person."""
    percent = {k: 100 * record[k] for k in ("accuracy", "interval", "gain", "gain_interval")}
    return (
        f"{record['method']:30} {record['shot']}-shot {percent['accuracy']:.2f} ± "
        f"{percent['interval']:.2f} ({percent['gain']:+.2f} ± {percent['gain_interval']:.2f}), "
        f"size {record['size']}, {record['milliseconds_to_embed_a_task']:.0f} + "
        f"{record['milliseconds_per_task']:.0f} ms a task, validation "
        + ", ".join(f"{100 * mean:.2f}" for mean in record["validation"])
    )


if __name__ == "__main__":
    main()
