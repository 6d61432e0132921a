"""Times and peak memory of an outer step beside ``higher``, learn2learn, TorchOpt and JAX.

    python benchmarks/speed.py                                    # the rows for this machine
    python benchmarks/speed.py --rows gpu --seconds 240 --output results/gpu.json
    python benchmarks/speed.py --network conv4-64-28 --tasks 4 16 64 --steps 1 5
    python benchmarks/speed.py --rows cpu --method penalty        # some of the named rows

Each row: the same network, weights and tasks for all; outer gradients compared in float64; then the
contenders take turns in the row's precision. ``benchmarks/README.md`` explains the table. It is
printed and written, with all figures as JSON, after every row, and at an interrupt.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from grid import METHODS, PRECISIONS, ROWS, Cell, cross
from peers import PEERS
from pool import Pool
from row import Effort, Interrupted, measure
from table import markdown

from fewshot_blo.kernel.graph import GraphMode
from fewshot_blo.records.files import atomic_write

FILTERS = ("network", "method", "adapted", "tasks", "steps", "shot", "precision")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the rows that were asked for.

    Raises:
        SystemExit: with 130 after an interrupt, once all that there is has been written.
    """
    options = _parse(arguments)
    settings = {"seed": options.seed, "chunk": options.chunk, "graph": options.graph}
    report: dict[str, Any] = {**settings, "rows": [], "not_started": []}
    pool = Pool(options.device, settings)
    cells = _cells(options)
    reason = "out of time"
    try:
        _measure(report, cells, pool, options)
    except Interrupted as interrupt:
        reason = "interrupted"
        report["rows"].append(interrupt.row)
    except KeyboardInterrupt:
        reason = "interrupted"
    finally:
        pool.stop()
    report["not_started"] = [cell.name for cell in cells[len(report["rows"]) :]]
    _write(report, options.output)
    print(markdown(report["rows"]))
    for name in report["not_started"]:
        print(f"not started, {reason}: {name}")
    if reason == "interrupted":
        sys.exit(130)


def _measure(
    report: dict[str, Any], cells: Sequence[Cell], pool: Pool, options: argparse.Namespace
) -> None:
    """Adds rows to the report, one after another, until they are done or time is out."""
    effort = Effort(
        options.repeats,
        options.row_seconds,
        options.own_seconds,
        options.peer_seconds,
        options.check_tasks,
        options.peer_tasks,
        () if options.no_peers else PEERS,
    )
    start = time.monotonic()
    report["machine"] = pool.describe()
    report["missing"] = {} if options.no_peers else pool.missing()
    for name, reason in report["missing"].items():
        print(f"{name} is skipped: {reason}", flush=True)
    for cell in cells:
        if options.seconds and time.monotonic() - start > options.seconds:
            return
        print(f"measuring {cell.name}", flush=True)
        report["rows"].append(measure(cell, pool, pool.rates(cell), effort, report["missing"]))
        _write(report, options.output)
        print(markdown(report["rows"][-1:]), flush=True)


def _cells(options: argparse.Namespace) -> list[Cell]:
    """The named rows, those of them that fit the filters, or the filters' cross product."""
    values = {name: getattr(options, name) for name in FILTERS if getattr(options, name)}
    if options.rows is None and values:
        return list(cross(Cell(), **values))
    named = ROWS[options.rows or ("gpu" if options.device == "cuda" else "cpu")]
    return [
        cell
        for cell in named
        if all(getattr(cell, name) in allowed for name, allowed in values.items())
    ]


def _write(report: dict[str, Any], output: Path) -> None:
    with atomic_write(output) as file:
        file.write(json.dumps(report, indent=1).encode())
    with atomic_write(output.with_suffix(".md")) as file:
        file.write(markdown(report["rows"]).encode())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", choices=tuple(ROWS))
    for name in FILTERS:
        kind = int if name in ("tasks", "steps", "shot") else str
        choices = {"method": METHODS, "adapted": ("all", "head"), "precision": PRECISIONS}
        parser.add_argument(f"--{name}", nargs="+", type=kind, choices=choices.get(name))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=0, help="start no row after; 0: no limit")
    parser.add_argument(
        "--row_seconds", type=float, default=Effort.row_seconds, help="of a row's rounds of timing"
    )
    parser.add_argument(
        "--own_seconds", type=float, default=Effort.own_seconds, help="until ours has a figure"
    )
    parser.add_argument(
        "--peer_seconds", type=float, default=Effort.peer_seconds, help="until a peer is ready"
    )
    parser.add_argument("--repeats", type=int, default=Effort.repeats)
    parser.add_argument("--check_tasks", type=int, default=Effort.check_tasks)
    parser.add_argument("--peer_tasks", type=int, default=0, help="time peers on so many; 0: all")
    parser.add_argument("--no_peers", action="store_true")
    parser.add_argument("--chunk", type=int, default=0, help="tasks at a time of ours; 0: measured")
    parser.add_argument("--graph", choices=get_args(GraphMode), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/speed.json"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
