"""Peak tensor memory of one hypergradient against the number of inner steps.

    python benchmarks/memory.py [--steps 5 50] [--network conv4-32-84] [--tasks 8] [--device cuda]
        [--output FILE]

5-way 1-shot tasks with 15 queries a class, all parameters adapted (``Initialization``, prox 0.5),
float32, all tasks at a time. On the host one task is differentiated after another (loop backend),
and what tensors hold is counted; on a GPU it is what PyTorch's allocator gave out. The table has
MiB a task; the JSON file has bytes of all tasks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from grid import Cell
from machine import describe

from fewshot_blo import SGD, Adam, Implicit, Initialization, Penalty, Unroll, classifier
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.machine.memory import peak_bytes
from fewshot_blo.records.files import atomic_write
from fewshot_blo.training.step import hypergradient


def main() -> None:
    """Prints a table: one row a strategy, one column a number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 50])
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--network", default="conv4-64-28")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    cell = Cell(arguments.network, tasks=arguments.tasks)
    batch = cell.batch(0, device, torch.float32)
    encoder, features = cell.encoder()
    problem = Initialization(
        classifier(encoder, features, cell.way).to(device),
        prox=0.5,
        backend="batched" if device.type == "cuda" else "loop",
    )
    print(f"{arguments.network}, {arguments.tasks} tasks, {device}")
    title = "peak MiB a task with inner steps"
    print(f"{title:34}" + "".join(f"{n:>10}" for n in arguments.steps))
    rows: list[dict[str, object]] = []
    for name in _strategies(1):
        peaks = []
        for steps in arguments.steps:
            strategy = _strategies(steps)[name]
            peaks.append(
                _peak(partial(hypergradient, problem, strategy, strategy.init(), batch), device)
            )
        ratio = f"   x {peaks[-1] / peaks[0]:.2f}"
        per_task = "".join(f"{p / 2**20 / arguments.tasks:10.1f}" for p in peaks)
        print(f"{name:34}{per_task}{ratio}", flush=True)
        rows.append(
            {"strategy": name, "peak_bytes": dict(zip(arguments.steps, peaks, strict=True))}
        )
        if arguments.output:
            _write(arguments, rows)


def _write(arguments: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    """Writes the rows so far, and what they were measured on."""
    settings = {name: getattr(arguments, name) for name in ("network", "tasks", "steps")}
    report = {"machine": describe(torch.device(arguments.device)), **settings, "rows": rows}
    with atomic_write(arguments.output) as file:
        file.write(json.dumps(report, indent=1).encode())


def _peak(function: Callable[[], object], device: torch.device) -> int:
    if device.type == "cpu":
        return peak_bytes(function)
    function()  # What libraries keep after the first call is not the hypergradient's.
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def _strategies(steps: int) -> dict[str, Strategy]:
    rule = SGD(0.01)
    return {
        "unroll": Unroll(InnerSteps(steps, rule)),
        "unroll, nothing recomputed": Unroll(InnerSteps(steps, rule), recompute=False),
        "unroll, all recomputed": Unroll(InnerSteps(steps, rule), recompute=True),
        "unroll, first order": Unroll(InnerSteps(steps, rule), first_order=True),
        "implicit, 5 conjugate gradients": Implicit(InnerSteps(steps, rule), ConjugateGradient()),
        "penalty": Penalty(InnerSteps(steps, Adam(1e-3))).for_training(),
    }


if __name__ == "__main__":
    main()
