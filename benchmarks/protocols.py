"""A released encoder under several protocols: imbalanced queries, open sets and conformal sets.

    python benchmarks/protocols.py checkpoints/released/cifarfs-5w1s-simpleshot/best.pt --root DIR

The images of the test classes are embedded once, with running statistics.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from fewshot_blo.evaluation.conformal import conformal
from fewshot_blo.evaluation.evaluate import embed, evaluate
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.settings import config_from
from fewshot_blo.objectives import AUPR, AUROC, OpenSetAccuracy
from fewshot_blo.objectives.open_set import Score
from fewshot_blo.tasks import ClassSampler
from fewshot_blo.tasks.protocols import Dirichlet, Episodic, OpenSet
from fewshot_blo.training import checkpoint as checkpoints

SCORES: tuple[Score, ...] = ("probability", "logit", "energy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--root", required=True, help="folder of the run's data set")
    parser.add_argument("--tasks", type=int, default=1000)
    arguments = parser.parse_args()
    saved = checkpoints.load(arguments.checkpoint)
    config = config_from(saved.config)
    dataset = config.data.changed(root=arguments.root).load().test
    problem = build_problem(config, dataset.images.shape[1:], trained=False)
    saved.restore(problem)
    embedder = problem.embedder
    if embedder is None:
        raise SystemExit("the checkpoint's problem has no encoder that all tasks share")
    features = embed(embedder, dataset.images)
    draw = partial(ClassSampler, dataset, tasks=16, seed=1000)
    measure = partial(
        evaluate,
        problem,
        tasks=arguments.tasks,
        norm="running",
        adaptation=config.adaptation,
        embeddings=features,
    )
    sets = partial(
        conformal,
        problem,
        tasks=arguments.tasks,
        calibration_tasks=arguments.tasks,
        norm="running",
        adaptation=config.adaptation,
        embeddings=features,
    )
    for shot in (1, 5):
        balanced = draw(Episodic(5, shot, 15))
        print(measure(balanced), flush=True)
        print(measure(draw(Dirichlet(5, shot, 15))), flush=True)
        for labelled in (19, 0):
            print(f"{shot}-shot, {sets(balanced, labelled=labelled)}", flush=True)
        for score in SCORES:
            metrics = (AUROC(score), AUPR(score), OpenSetAccuracy(score))
            print(measure(draw(OpenSet(5, shot, 15, 5)), metrics=metrics), flush=True)


if __name__ == "__main__":
    main()
