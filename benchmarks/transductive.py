"""Heads that classify all queries of a task jointly, on queries in equal and unequal numbers.

    python benchmarks/transductive.py --root DIR [--checkpoint FILE] [--tasks 1000] [--threads 1]
        [--cache FILE] [--only NAME ...] [--output FILE]

5-way tasks with 1 and 5 shots from the test classes of CIFAR-FS, on the features of a SimpleShot
checkpoint, which are computed once and kept in ``--cache``. Balanced queries are 15 of each class,
the sampler's tasks. Otherwise 75 queries are divided among the classes by proportions from a
Dirichlet distribution whose 5 parameters are 2 (Veilleux et al., arXiv 2204.11181), for the same
classes and support sets. Settings are those of the papers, or are chosen on tasks of the 16
validation classes, half of them with each kind of queries, and never on test classes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from torch import Tensor

from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.heads import (
    AlphaTIMHead,
    BDCSPNHead,
    CosineHead,
    Head,
    LabelPropagationHead,
    LaplacianShotHead,
    PTMAPHead,
    SoftKMeansHead,
    TIMHead,
)
from fewshot_blo.heads.head import SupportSet, normalize
from fewshot_blo.networks import Conv4
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.tensor_files import read_tensors
from fewshot_blo.tasks import ClassDataset, EpisodicSampler, cifarfs

RELEASED = Path("checkpoints/released/cifarfs-5w1s-simpleshot/best.pt")
WAY, QUERY, SHOTS, SEED = 5, 15, (1, 5), 1000
CONCENTRATION = 2.0
VALIDATION_TASKS = 200
AT_A_TIME = 32


@dataclass(frozen=True)
class Row:
    """A head in the table.

    Attributes:
        features: "raw" as the encoder returns them, "unit" of unit length, or "centred": the mean
            of the training images is subtracted before.
        candidates: heads for a number of shots; the best on validation tasks is tested.
    """

    features: str
    candidates: Callable[[int], Sequence[Head]]


def published(shot: int) -> float:
    """α of α-TIM, as in its authors' code."""
    return 2.0 if shot == 1 else 7.0


ROWS: dict[str, Row] = {
    "SimpleShot": Row("centred", lambda shot: [CosineHead()]),
    "label propagation": Row(
        "centred",
        lambda shot: [LabelPropagationHead(sigma=s) for s in (0.2, 0.3, 0.5, 0.8)],
    ),
    "soft k-means": Row(
        "centred",
        lambda shot: [
            SoftKMeansHead(s, n) for s in (5.0, 10.0, 20.0, 40.0) for n in (1, 3, 10, 20)
        ],
    ),
    "BD-CSPN": Row("centred", lambda shot: [BDCSPNHead(s) for s in (1.0, 2.0, 5.0, 10.0, 20.0)]),
    "LaplacianShot": Row(
        "centred",
        lambda shot: [
            LaplacianShotHead(lam, rectified=rectified)
            for lam in (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
            for rectified in (False, True)
        ],
    ),
    "PT-MAP": Row("raw", lambda shot: [PTMAPHead()]),
    "TIM": Row("unit", lambda shot: [TIMHead()]),
    "alpha-TIM": Row("unit", lambda shot: [AlphaTIMHead(alpha=published(shot))]),
}
KINDS = ("balanced", "Dirichlet(2)")


@dataclass(frozen=True)
class Tasks:
    """T tasks by rows of a data set.

    Attributes:
        support: ``[T, N*K]``, rows of the support sets, class by class.
        query: ``[T, N*Q]``, rows of the queries.
        labels: ``[T, N*Q]``, labels of the queries.
    """

    support: Tensor
    query: Tensor
    labels: Tensor


def main() -> None:
    """Prints a table with both kinds of queries."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the data")
    parser.add_argument("--checkpoint", type=Path, default=RELEASED, help="Conv4 of SimpleShot")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/transductive-features.pt"))
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    splits = cifarfs.load(arguments.root)
    parts = {"validation": splits.validation, "test": splits.test}
    features = cached(arguments.cache, arguments.checkpoint, parts)
    print(header())
    rows = []
    for name in arguments.only:
        cells = [
            cell
            for shot in SHOTS
            for cell in measured(ROWS[name], shot, parts, features, arguments.tasks)
        ]
        rows.append({"head": name, "features": ROWS[name].features, "cells": cells})
        print(line(name, cells), flush=True)
    if arguments.output:
        figures = {"tasks": arguments.tasks, "seed": SEED, "rows": rows}
        with atomic_write(arguments.output) as file:
            content = {"machine": describe(torch.device("cpu")), **figures}
            file.write(json.dumps(content, indent=1).encode())


def header() -> str:
    names = [f"{shot}-shot, {kind}" for shot in SHOTS for kind in KINDS]
    return "\n".join([f"| head | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"])


def line(name: str, cells: Sequence[Mapping[str, Any]]) -> str:
    """A line of the table; the fall from balanced queries is in brackets."""
    values = []
    for balanced, other in zip(cells[::2], cells[1::2], strict=True):
        values.append(f"{balanced['accuracy']:.2f} ± {balanced['interval']:.2f}")
        change = other["accuracy"] - balanced["accuracy"]
        values.append(f"{other['accuracy']:.2f} ± {other['interval']:.2f} ({change:+.1f})")
    return f"| {name} | {' | '.join(values)} |"


def cached(
    path: Path, checkpoint: Path, parts: Mapping[str, ClassDataset]
) -> dict[str, dict[str, Tensor]]:
    """Features of each part ``[M, D]``, by kind, from the cache or embedded and put into it."""
    if path.is_file():
        raw, mean = torch.load(path)
    else:
        content = read_tensors(checkpoint, "checkpoint")
        tensors = {**content["outer"], **content["buffers"]}
        network = Conv4(channels=3)
        names = [name for name in network.state_dict() if not name.endswith("batches_tracked")]
        state = {name: tensors[f"encoder.{name}"] for name in names}
        network.load_state_dict(state, strict=False)
        raw = {name: embed(network.eval(), part.images) for name, part in parts.items()}
        mean = tensors["centre.mean"]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save((raw, mean), path)
    return {
        name: {"raw": x, "unit": normalize(x), "centred": normalize(x - mean)}
        for name, x in raw.items()
    }


def measured(
    row: Row,
    shot: int,
    parts: Mapping[str, ClassDataset],
    features: Mapping[str, Mapping[str, Tensor]],
    tasks: int,
) -> list[dict[str, Any]]:
    """Accuracy with each kind of queries, in percent, of the head that is best on validation."""
    candidates = row.candidates(shot)
    if len(candidates) > 1:
        of_kinds = drawn(parts["validation"], shot, VALIDATION_TASKS)
        x = features["validation"][row.features]
        scores = [
            sum(float(accuracies(head, x, kind).mean()) for kind in of_kinds.values())
            for head in candidates
        ]
        head = candidates[int(np.argmax(scores))]
    else:
        head = candidates[0]
    cells = []
    for kind, chosen in drawn(parts["test"], shot, tasks).items():
        start = time.perf_counter()
        found = 100 * accuracies(head, features["test"][row.features], chosen)
        cells.append(
            {
                "shot": shot,
                "queries": kind,
                "accuracy": float(found.mean()),
                "interval": float(1.96 * found.std() / len(found) ** 0.5),
                "settings": asdict(head),  # type: ignore[call-overload]
                "chosen_of": len(candidates),
                "seconds": time.perf_counter() - start,
            }
        )
    return cells


def drawn(dataset: ClassDataset, shot: int, tasks: int) -> dict[str, Tasks]:
    """The same tasks with both kinds of queries."""
    most = WAY * QUERY
    # Embeddings that are row numbers give the rows of the sampler's tasks.
    sampler = EpisodicSampler(
        dataset, way=WAY, shot=shot, query=QUERY, tasks=1, seed=SEED, dtype=torch.float64
    )
    numbers = torch.arange(len(dataset.images), dtype=torch.float64).unsqueeze(1)
    batch = sampler.between(0, tasks, numbers)
    support, query = (x.squeeze(2).long() for x in (batch.support_x, batch.query_x))
    found = Tasks(support, query, batch.query_y)
    # Row ``n * most + q`` is the q-th candidate of the n-th class, the support set not among them.
    sampler = EpisodicSampler(
        dataset, way=WAY, shot=shot, query=most, tasks=1, seed=SEED, dtype=torch.float64
    )
    batch = sampler.between(0, tasks, numbers)
    if not torch.equal(batch.support_x.squeeze(2).long(), support):
        raise AssertionError("the number of queries changed the support sets")
    rows = batch.query_x.squeeze(2).long().unflatten(1, (WAY, most))
    counts = [query_counts(np.random.default_rng((SEED, number))) for number in range(tasks)]
    taken = [
        torch.cat([rows[t, n, :count] for n, count in enumerate(own)])
        for t, own in enumerate(counts)
    ]
    labels = [torch.arange(WAY).repeat_interleave(torch.tensor(own)) for own in counts]
    return dict(
        zip(KINDS, (found, Tasks(support, torch.stack(taken), torch.stack(labels))), strict=True)
    )


def query_counts(rng: np.random.Generator) -> list[int]:
    """Numbers of queries of each class, 75 in all, in proportions from a Dirichlet distribution.

    The proportions are rounded down, and the largest remainders up.
    """
    exact = WAY * QUERY * rng.dirichlet([CONCENTRATION] * WAY)
    counts = np.floor(exact).astype(int)
    largest = np.argsort(counts - exact)
    counts[largest[: WAY * QUERY - counts.sum()]] += 1
    return [int(count) for count in counts]


@torch.no_grad()
def accuracies(head: Head, features: Tensor, tasks: Tasks) -> Tensor:
    """Accuracy of each task, ``[T]``."""
    found = []
    learned = head.learned(features.shape[1])
    labels = torch.arange(WAY).repeat_interleave(tasks.support.shape[1] // WAY)
    for start in range(0, len(tasks.support), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        x, count = features[tasks.support[part]], len(tasks.support[part])
        classes = torch.arange(WAY).expand(count, WAY)
        support = SupportSet(x, labels.expand(count, -1), classes)
        logits = head.logits(
            head.from_support(support, learned), features[tasks.query[part]], learned
        )
        found.append((logits.argmax(2) == tasks.labels[part]).double().mean(1))
    return torch.cat(found)


if __name__ == "__main__":
    main()
