"""Draws the picture of the start page: a task of new letters, and accuracy while meta-training.

    python scripts/start_picture.py [--steps 120] [--tasks 100] [--output docs/images/start.png]

Trains on the glyphs of the package with seed 0, some minutes on one core; accuracy is that of tasks
of the validation letters, which no training task has.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fewshot_blo import (
    SGD,
    Conv4,
    InnerSteps,
    SharedEncoder,
    TrainSettings,
    Unroll,
    evaluate,
    train,
)
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.records.figure import COLOURS, new_figure, save_figure, style
from fewshot_blo.tasks import EpisodicSampler, TaskBatch, glyphs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WAY, QUERIES, FONT = 5, 3, 12


def followed(steps: int, tasks: int) -> tuple[TaskBatch, list[tuple[int, Evaluation]]]:
    """A validation task, and accuracy on such tasks by the number of outer steps."""
    torch.manual_seed(0)
    training, validation, _ = (
        EpisodicSampler(split, way=WAY, shot=1, query=5, tasks=8) for _, split in glyphs.load()
    )
    problem, inner = SharedEncoder(Conv4(hidden=32)), InnerSteps(5, SGD(0.5))
    found = [(0, evaluate(problem, validation, tasks=tasks, adaptation=inner, progress=False))]
    settings = TrainSettings(steps=steps, validate_every=max(1, steps // 6), validation_tasks=tasks)
    with tempfile.TemporaryDirectory() as folder:
        train(
            problem,
            Unroll(inner),
            training,
            validation,
            folder=folder,
            settings=settings,
            progress=False,
            validated=lambda step, result: found.append((step, result)),
        )
    return validation.batch(0), found


def draw_task(axes: Axes, batch: TaskBatch) -> None:
    """Draws the first task: its labelled pictures, and pictures that it asks about."""
    x, y = batch.query_x[0], batch.query_y[0]
    rows = [
        torch.cat([batch.support_x[0][batch.support_y[0] == n][:1], x[y == n][:QUERIES]])[:, 0]
        for n in range(WAY)
    ]
    size = rows[0].shape[-1]
    white = torch.ones(size, size // 3)
    axes.imshow(torch.cat([torch.cat([row[0], white, *row[1:]], 1) for row in rows]), cmap="gray")
    axes.set(xticks=[], yticks=[])
    axes.set_title("A task: five new letters", fontsize=FONT)
    below: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": FONT}
    axes.text(size / 2, size * (WAY + 0.1), "labelled", **below)
    axes.text(size * (4 / 3 + QUERIES / 2), size * (WAY + 0.1), "to classify", **below)


def draw_accuracy(axes: Axes, found: Sequence[tuple[int, Evaluation]]) -> None:
    """Draws accuracy over outer steps, with a band of the intervals."""
    style(axes)
    steps = [step for step, _ in found]
    means, halves = (
        100 * torch.tensor([getattr(result, name) for _, result in found])
        for name in ("mean", "interval")
    )
    axes.plot(steps, means, "o-", color=COLOURS[0], label="mean, 95 % interval")
    axes.fill_between(steps, means - halves, means + halves, color=COLOURS[0], alpha=0.25)
    axes.axhline(100 / WAY, color="gray", linestyle="--", label="guessing")
    axes.set(ylim=(0, 102), xticks=steps)
    axes.set_xlabel("meta-training: outer steps (count)", fontsize=FONT)
    axes.set_ylabel("accuracy (%)", fontsize=FONT)
    axes.set_title("Accuracy on such tasks", fontsize=FONT)
    axes.tick_params(labelsize=11)
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.4), fontsize=FONT, frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("docs/images/start.png"))
    arguments = parser.parse_args()
    batch, found = followed(arguments.steps, arguments.tasks)
    for step, result in found:
        print(f"{step} outer steps: {100 * result.mean:.1f} ± {100 * result.interval:.1f} %")
    figure = new_figure("Learning to learn from one picture a class", 6.8, 3.5)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    draw_task(left, batch)
    draw_accuracy(right, found)
    save_figure(figure, arguments.output)


if __name__ == "__main__":
    main()
