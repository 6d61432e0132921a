"""Few-shot accuracy of a pretrained backbone: prototypes, and adaptations.

CIFAR-FS, 5-way, 15 queries a class. Every adaptation has a few step sizes; for each shot the one
with the highest accuracy on validation classes is taken to the test classes.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from fewshot_blo.allocator import keep_freed_memory
from fewshot_blo.backbones import Backbone, load_backbone
from fewshot_blo.evaluate import embed, evaluate
from fewshot_blo.evaluation import Evaluation, paired_difference
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.provenance import provenance
from tasks import ClassDataset, EpisodicSampler, cifarfs
from tasks.files import atomic_write

ADAM = {"rule": "adam", "steps": 50}
CANDIDATES: dict[str, list[Candidate]] = {
    "prototypes": [Candidate("prototypes", head="cosine")],
    "ridge": [Candidate("ridge", head="ridge", lam=lam) for lam in (0.03, 0.1, 0.3, 1.0)],
    "linear head": [
        Candidate("linear head", steps=50, step_size=size) for size in (0.3, 1.0, 3.0, 10.0)
    ],
    "last block": [
        Candidate("last block", adapts="last_blocks", step_size=size, **ADAM)  # type: ignore[arg-type]
        for size in (3e-4, 1e-3, 3e-3, 1e-2)
    ],
    "low rank, last 2 blocks": [
        Candidate("low rank", adapts="low_rank", blocks=2, step_size=size, **ADAM)  # type: ignore[arg-type]
        for size in (1e-3, 3e-3, 1e-2)
    ],
}


def main() -> None:
    """Measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of CIFAR-FS")
    parser.add_argument("--backbone", default="torchvision:mobilenet_v3_small")
    parser.add_argument("--weights", help="file of weights, where not the library's own")
    parser.add_argument("--size", type=int, default=128, help="pixels that images are resized to")
    parser.add_argument("--interpolation", default="bicubic")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--tasks", type=int, default=600, help="test tasks")
    parser.add_argument("--validation_tasks", type=int, default=200)
    parser.add_argument("--only", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    keep_freed_memory()
    splits = cifarfs.load(arguments.root)
    backbone = load_backbone(arguments.backbone, weights=arguments.weights, size=arguments.size)
    settings = replace(backbone.preprocess.settings, interpolation=arguments.interpolation)
    backbone = Backbone(backbone.body, settings, name=backbone.name)
    measured: dict[str, dict[str, Evaluation]] = {str(shot): {} for shot in arguments.shots}
    known: dict[tuple[str, int], list[torch.Tensor]] = {}  # Of one kind at a time.
    records, tasks = [], arguments.validation_tasks
    for name in dict.fromkeys(["prototypes", *arguments.only]):
        options = CANDIDATES[name]
        kind = options[0].adapts, options[0].blocks
        if kind not in known:
            problem = options[0].problem(backbone, splits.test.images.shape[1:])
            parts = (splits.validation, splits.test)
            known = {kind: [embed(problem.network, part.images) for part in parts]}
        on_validation, on_test = known[kind]
        for shot in arguments.shots:
            tried = [
                measure(c, backbone, splits.validation, on_validation, shot, tasks) for c in options
            ]
            best = options[max(range(len(tried)), key=lambda place: tried[place].mean)]
            start = time.perf_counter()
            test = measure(best, backbone, splits.test, on_test, shot, arguments.tasks)
            milliseconds = 1000 * (time.perf_counter() - start) / arguments.tasks
            measured[str(shot)][name] = test
            gain, half = paired_difference(measured[str(shot)]["prototypes"], test)
            records.append(
                {
                    "method": name,
                    "shot": shot,
                    "step_size": best.step_size,
                    "lam": best.lam,
                    "validation": [e.mean for e in tried],
                    "accuracy": test.mean,
                    "interval": test.interval,
                    "gain": gain,
                    "gain_interval": half,
                    "milliseconds_per_task": milliseconds,
                }
            )
            print(
                f"{name:24} {shot}-shot {100 * test.mean:.2f} ± {100 * test.interval:.2f} "
                f"({100 * gain:+.2f} ± {100 * half:.2f}), {milliseconds:.0f} ms a task, "
                f"validation {', '.join(f'{100 * e.mean:.2f}' for e in tried)}",
                flush=True,
            )
            if arguments.output:
                content = {
                    "backbone": backbone.name,
                    "preprocessing": str(settings),
                    "tasks": arguments.tasks,
                    "provenance": provenance(torch.device("cpu")),
                    "rows": records,
                }
                with atomic_write(arguments.output) as file:
                    file.write(json.dumps(content, indent=1).encode())


def measure(
    candidate: Candidate,
    backbone: Backbone,
    dataset: ClassDataset,
    features: torch.Tensor,
    shot: int,
    tasks: int,
) -> Evaluation:
    """Accuracy of one adaptation on tasks of one split."""
    sampler = EpisodicSampler(dataset, way=5, shot=shot, query=15, tasks=32, seed=1000)
    problem = candidate.problem(backbone, dataset.images.shape[1:])
    return evaluate(
        problem,
        sampler,
        tasks=tasks,
        norm="support",
        adaptation=candidate.adaptation(),
        embeddings=features,
    )


if __name__ == "__main__":
    main()
