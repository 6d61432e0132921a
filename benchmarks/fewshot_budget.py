"""Trains few-shot rows with equal numbers of passes, and draws accuracy over passes and seconds.

    python benchmarks/fewshot_budget.py benchmarks/budgets/NAME.yaml --root DIR [--seeds 0 1 2]

A pass is a gradient of F or G, or a product with second derivatives of G, on one batch of tasks.
All rows of a file have the same tasks, initial weights and validation tasks, and as many outer
steps as the passes allow. Seconds are those of the processor in outer steps: drawing tasks,
hypergradient and update, and not validation. The same command goes on after an interrupt with the
row at which it stopped. Writes table.md, table.csv, progress.png and a file for each row and seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import yaml

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.experiments.components import merged
from fewshot_blo.experiments.data import build_sampler
from fewshot_blo.experiments.recipes import with_seed
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.experiments.training import build_start
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.machine.allocator import keep_freed_memory
from fewshot_blo.machine.chunk import Chunk
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.provenance import provenance
from fewshot_blo.records.tables import write_table
from fewshot_blo.studies.products import Passes, passes_of_step
from fewshot_blo.studies.progress import GRADIENTS, PRODUCTS, draw_progress
from fewshot_blo.studies.rows import over_seeds
from fewshot_blo.studies.table import study_table
from fewshot_blo.tasks import TaskBatch, TaskSource
from fewshot_blo.tasks.catalogue import DataSet
from fewshot_blo.tasks.split import TaskSplits
from fewshot_blo.training.run import Run

ACCURACY = "validation accuracy, %"
DOUBLINGS = 5
"""Of the passes, from the first validation to the last, with two validations for each."""


@dataclass(frozen=True)
class Budget:
    """Rows with the same budget.

    Attributes:
        passes: that each row may take, on a batch of tasks each.
        rows: settings of each row by name, those that are common to all included.
    """

    passes: int
    rows: Mapping[str, Mapping[str, Any]]


def read_budget(path: Path) -> Budget:
    """The rows of a file with ``common`` settings, ``passes``, and the settings of ``rows``."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = {name: merged(content["common"], own)[0] for name, own in content["rows"].items()}
    return Budget(content["passes"], rows)


def passes_of(problem: FewShotProblem, strategy: Strategy, batch: TaskBatch) -> Passes:
    """What one outer step takes, with the graphs of inner steps kept."""
    bound = problem.bind(batch, "transductive")
    return passes_of_step(bound.bilevel, strategy.with_recompute(False))


def validations(steps: int) -> list[int]:
    """Outer steps after which to validate, evenly spaced on a logarithmic axis."""
    parts = (2 ** (-half / 2) for half in range(2 * DOUBLINGS + 1))
    return sorted({max(1, round(steps * part)) for part in parts})


def train_row(config: Config, splits: TaskSplits, passes: int, test_tasks: int) -> dict[str, Any]:
    """Trains a row, and returns its cost, the log of its validations and its test accuracy.

    ``train`` has wall time, with that of validation, so the outer steps are taken here, by the
    ``Run`` that ``train`` is made of.
    """
    problem = build_start(config, splits.train.images.shape[1:])
    tasks = build_sampler(config, splits.train, training=True)
    validation = build_sampler(config, splits.validation, training=False)
    first = tasks.batch(0)
    problem.prepare(first, derivatives=config.strategy.derivatives)
    cost = passes_of(problem, config.strategy, first)
    steps = passes // sum(cost)
    if not steps:
        raise ConfigurationError(f"{passes} passes, and one outer step takes {sum(cost)}")
    kept = Chunk(first.tasks, recompute=False)
    run = Run(problem, config.strategy, config.train, Path(), {}, chunk=kept)
    problem.network.train()
    log, seconds, due = [], 0.0, validations(steps)
    while run.step < steps:
        begin = time.process_time()
        step = run.hypergradient(tasks.batch(run.step))
        run.check_finite(step)
        run.update(step)
        seconds += time.process_time() - begin
        if run.step in due:
            accuracy = percent(problem, config, validation, config.train.validation_tasks)
            log.append({"step": run.step, ACCURACY: accuracy, "seconds": seconds})
    test = build_sampler(config, splits.test, training=False)
    return {
        "gradients": cost.gradients,
        "products": cost.products,
        "log": log,
        "test": percent(problem, config, test, test_tasks),
    }


def percent(problem: FewShotProblem, config: Config, sampler: TaskSource, tasks: int) -> float:
    """Accuracy in % on the sampler's first tasks, in the transductive mode."""
    return 100 * evaluate(problem, sampler, tasks=tasks, adaptation=config.adaptation).mean


def report(results: Mapping[str, Sequence[Mapping[str, Any]]], passes: int, folder: Path) -> str:
    """Writes table and figure of the rows, each with a result a seed, and returns the table."""
    logs = {name: [result["log"] for result in many] for name, many in results.items()}
    least = min(log[-1]["seconds"] for many in logs.values() for log in many)
    records = [
        {"method": name, **over_seeds([figures_of(result, passes, least) for result in many])}
        for name, many in results.items()
    ]
    means = {
        name: [mean_of(at_once) for at_once in zip(*many, strict=True)]
        for name, many in logs.items()
    }
    text = study_table(records, seeds=max(len(many) for many in results.values()))
    write_table(folder, text, records)
    draw_progress(records, means, folder / "progress.png", seconds="CPU time (s)")
    return text


def mean_of(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of records with the same names."""
    return {name: mean(record[name] for record in records) for name in records[0]}


def figures_of(result: Mapping[str, Any], passes: int, seconds: float) -> dict[str, float]:
    """Figures of one row and seed: at the end of its passes, and after some seconds."""
    log = result["log"]
    at, accuracy = [r["seconds"] for r in log], [r[ACCURACY] for r in log]
    return {
        f"validation %, {passes} passes": accuracy[-1],
        f"validation %, {seconds:.0f} CPU s": float(np.interp(seconds, at, accuracy)),
        "test %": result["test"],
        "outer steps": float(log[-1]["step"]),
        GRADIENTS: float(result["gradients"]),
        PRODUCTS: float(result["products"]),
        "CPU seconds": at[-1],
    }


def main() -> None:
    """Trains what is missing, and reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("budget", type=Path, help="file with the rows (benchmarks/budgets)")
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="names of rows; all by default")
    parser.add_argument("--passes", type=int, help="in place of those of the file")
    parser.add_argument("--test_tasks", type=int, default=600)
    parser.add_argument("--output", type=Path, help="folder; by default runs/NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    budget = read_budget(arguments.budget)
    passes = arguments.passes or budget.passes
    folder = arguments.output or Path("runs") / arguments.budget.stem
    chosen = {name: budget.rows[name] for name in arguments.only or budget.rows}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in arguments.seeds:
        for name, settings in chosen.items():
            config = with_seed(config_from(settings), seed)
            config = replace(config, data=config.data.changed(root=arguments.root))
            file = folder / name / f"seed{seed}.json"
            found[name].append(known(file, config, passes, arguments.test_tasks))
    print(report(found, passes, folder))


def known(file: Path, config: Config, passes: int, test_tasks: int) -> dict[str, Any]:
    """The result of a row and seed from its file; trains it first if there is none."""
    wanted = {**config.plain(), "data": type(config.data).__name__, "passes": passes}
    if file.is_file():
        before: dict[str, Any] = json.loads(file.read_text())
        if before["settings"] != wanted:
            raise ConfigurationError(f"{file} has other settings: remove it, or change --output")
        return before
    splits = loaded(config.data)
    result = {
        "settings": wanted,
        "provenance": provenance(torch.device("cpu")),
        **train_row(config, splits, passes, test_tasks),
    }
    with atomic_write(file) as opened:
        opened.write((json.dumps(result, indent=1) + "\n").encode())
    print(f"{file}: {result['log'][-1]}, test {result['test']:.2f} %", flush=True)
    return result


@cache
def loaded(data: DataSet) -> TaskSplits:
    """The data set, read once."""
    return data.load()


if __name__ == "__main__":
    main()
