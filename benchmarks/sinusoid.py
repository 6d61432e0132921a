"""The sinusoids of MAML: five methods with equal tasks and seconds, errors by inner steps.

    python benchmarks/sinusoid.py [--share 1] [--seed 0] [--jobs 2] [--folder DIR]

10 support and 10 query points a task, 25 tasks an outer step, and the network of MAML's section 5.1
(arXiv 1703.03400): two hidden layers of 40 ReLUs. Test errors are of 600 tasks that no training or
validation task equals, with 50 query points each, after 0 to 20 inner steps. Writes table.md,
errors.png, errors.json and a run for each method, in which validation chooses the outer variables.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from machine import describe
from sinusoid_methods import INNER_STEPS, METHODS, SHOT, TEST_TASKS, Errors, measured

from fewshot_blo.records.curves import Curve, Panel, curve_figure
from fewshot_blo.records.figure import save_figure
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.jobs import run_jobs
from fewshot_blo.records.tables import markdown


def draw(rows: Sequence[Errors], path: Path) -> None:
    """Draws the error of each method over inner steps."""
    curves = {row.name: Curve(INNER_STEPS, row.means, row.intervals) for row in rows}
    panel = Panel(
        curves,
        "inner steps on 10 points (count)",
        "mean squared error on new points",
        yscale="log",
    )
    title = "Sinusoids: test error after adaptation, with 95 % intervals"
    figure = curve_figure(title, [panel])
    figure.axes[0].set_xticks(INNER_STEPS)
    save_figure(figure, path)


def table(rows: Sequence[Errors]) -> str:
    """Errors after one and nine steps, and what training took."""
    places = [INNER_STEPS.index(count) for count in (0, 1, 5, 9, 20)]
    cells = [
        [
            row.name,
            *(f"{row.means[k]:.3f} ± {row.intervals[k]:.3f}" for k in places),
            str(row.steps),
            f"{row.seconds:.0f}",
        ]
        for row in rows
    ]
    columns = ["method", "0 steps", "1 step", "5 steps", "9 steps", "20 steps"]
    columns += ["outer steps", "seconds of the processor"]
    return markdown(columns, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the outer steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/sinusoid"))
    arguments = parser.parse_args()
    make = partial(measured, arguments.share, arguments.seed, arguments.folder)
    start, names = time.perf_counter(), list(METHODS)
    found = dict(run_jobs(make, names, arguments.jobs))
    rows = [found[place] for place in range(len(names))]
    text = (
        f"{table(rows)}\n{TEST_TASKS} tasks, {SHOT} shots, seed "
        f"{arguments.seed}; {time.perf_counter() - start:.0f} s in all by {arguments.jobs} jobs"
    )
    print(text)
    content = {
        "machine": describe(torch.device("cpu")),
        "arguments": vars(arguments),
        "rows": [vars(r) for r in rows],
    }
    for name, data in (("table.md", text), ("errors.json", json.dumps(content, default=str))):
        with atomic_write(arguments.folder / name) as file:
            file.write(f"{data}\n".encode())
    draw(rows, arguments.folder / "errors.png")


if __name__ == "__main__":
    main()
