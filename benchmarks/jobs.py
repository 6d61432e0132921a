"""Time of an evaluation by several jobs of one thread, beside one process of one thread.

    python benchmarks/jobs.py --root DIR [--checkpoint FILE] [--tasks 10000] [--repeats 3]

``--root`` is the folder of Omniglot. Each run is the command ``fewshot-blo evaluate`` in a process
of its own, from its start to the written figures, loading of the images included. Runs take turns.
Besides the seconds, the processors' time of a run and its share of the cores are written: where
other programs need the cores, a run takes longer without computing more. The accuracies of all
tasks must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import describe
from timing import Spread, take_turns

ROOT = Path(__file__).resolve().parents[1]
_CHECKPOINT = ROOT / "checkpoints" / "released" / "omniglot-5w1s-protonet" / "best.pt"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="folder of Omniglot")
    parser.add_argument("--checkpoint", type=Path, default=_CHECKPOINT)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--norm", default="transductive")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/jobs.json"))
    arguments = parser.parse_args()
    cpu: dict[int, list[float]] = {1: [], arguments.jobs: []}
    walls: dict[int, list[float]] = {1: [], arguments.jobs: []}
    accuracies = []
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "evaluation.json"

        def measure(jobs: int) -> float:
            words = [f"--jobs={jobs}", f"--tasks={arguments.tasks}", f"--norm={arguments.norm}"]
            words += [f"--root={arguments.root}", f"--output={output}", "--device=cpu"]
            before, start = _processors(), time.perf_counter()
            # The threads are divided among the jobs, so that each has one.
            subprocess.run(
                [sys.executable, "-m", "fewshot_blo", "evaluate", arguments.checkpoint, *words],
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": str(jobs), "MKL_NUM_THREADS": str(jobs)},
                stdout=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - start
            cpu[jobs].append(_processors() - before)
            walls[jobs].append(seconds)
            (found,) = json.loads(output.read_text(encoding="utf-8"))["checkpoints"].values()
            accuracies.append(found[0]["task_accuracy"])
            return seconds

        rounds = list(
            take_turns([1, arguments.jobs], measure, repeats=arguments.repeats, budget=3600)
        )
    differing = max(sum(a != b for a, b in zip(x, accuracies[0], strict=True)) for x in accuracies)
    result = {
        "machine": describe(torch.device("cpu")),
        "tasks": arguments.tasks,
        "seconds": walls,
        "processor_seconds": cpu,
        "ratios": [done[1] / done[arguments.jobs] for done in rounds],
        "tasks_that_differ": differing,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1), encoding="utf-8")
    for jobs, seconds in walls.items():
        wall, used = Spread.of(seconds), Spread.of(cpu[jobs])
        print(
            f"{jobs} job{'s' if jobs > 1 else ''} of one thread: {wall.median:.1f} s "
            f"({wall.low:.1f} to {wall.high:.1f}), {used.median:.1f} s of processors"
        )
    ratio = Spread.of([done[1] / done[arguments.jobs] for done in rounds])
    print(f"ratio {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
    print(f"{differing} of {arguments.tasks} tasks have another accuracy")


def _processors() -> float:
    """Seconds of processors that the programs took that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
