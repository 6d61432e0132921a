"""Training by several processes: measured on this machine, and calculated for up to 64 of them.

    python benchmarks/processes.py [--repeats 5] [--steps 10] [--output FILE]

First: outer steps of two processes of one thread each beside those of one process of two threads,
on the same batch, with ``train``'s own state, optimizer and exchange. The two take turns, each in
processes of its own. Then the parts of a step, measured by one thread: the step of 1 to 64 tasks,
and the sum over processes for buffers of 1 KiB to 64 MiB, from which latency and bandwidth follow.
From these, with 64 tasks a step, the table: a ring sends ``2 (n - 1) / n`` of the bytes in
``2 (n - 1)`` messages. ``--latency`` and ``--bandwidth`` calculate it for another network.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from grid import Cell
from machine import describe
from ours import make_problem, make_strategy
from timing import Spread, take_turns

from fewshot_blo.machine.chunk import Chunk
from fewshot_blo.machine.processes import joined
from fewshot_blo.training.chunk_choice import choose_chunk
from fewshot_blo.training.exchange import task_to_compute
from fewshot_blo.training.run import Run
from fewshot_blo.training.settings import TrainSettings

CELLS = {"head only": Cell(adapted="head"), "all parameters": Cell(adapted="all")}
TASKS, RANKS = 64, (1, 2, 4, 8, 16, 32, 64)
BUFFERS = [2**exponent for exponent in range(10, 27, 4)]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="outer steps of a measurement")
    parser.add_argument("--latency", type=float, help="seconds a message; measured by default")
    parser.add_argument("--bandwidth", type=float, help="bytes a second; measured by default")
    parser.add_argument("--output", type=Path, default=Path("runs/processes.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": describe(torch.device("cpu")), "ratios": {}, "scaling": {}}
    for name, cell in CELLS.items():
        measure = partial(_in_processes, cell=cell, steps=arguments.steps)
        rounds = list(take_turns([(1, 2), (2, 1)], measure, repeats=arguments.repeats, budget=3600))
        ratios = [done[1, 2] / done[2, 1] for done in rounds]
        result["ratios"][name] = ratios
        found = Spread.of(ratios)
        print(
            f"{name}, {cell.tasks} tasks: one process of 2 threads takes {found.median:.2f} "
            f"({found.low:.2f} to {found.high:.2f}) times as long as 2 processes of 1 thread"
        )
    latency, bandwidth = _exchange_line()
    result |= {"latency": latency, "bandwidth": bandwidth}
    latency, bandwidth = arguments.latency or latency, arguments.bandwidth or bandwidth
    print(f"sum over processes: {1e6 * latency:.0f} us a message, {bandwidth / 2**30:.2f} GiB/s")
    for name, cell in CELLS.items():
        result["scaling"][name] = _table(name, cell, arguments.steps, latency, bandwidth)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _table(
    name: str, cell: Cell, steps: int, latency: float, bandwidth: float
) -> list[dict[str, float]]:
    """Prints and returns a row for each number of processes."""
    problem = make_problem(cell, torch.device("cpu"), torch.float32)
    size = 4 * (sum(p.numel() for p in problem.outer.values()) + 2 * TASKS)
    print(f"{name}: {TASKS} tasks a step, {size / 2**20:.2f} MiB exchanged")
    print("processes  tasks each  step s  exchange s  efficiency")
    rows: list[dict[str, float]] = []
    for ranks in RANKS:
        own = Cell(**{**vars(cell), "tasks": TASKS // ranks})
        step = _in_processes((1, 1), own, max(2, steps * min(ranks, 8) // 8))
        exchange = 2 * (ranks - 1) * latency + 2 * (ranks - 1) / ranks * size / bandwidth
        rows.append({"processes": ranks, "step": step, "exchange": exchange})
        share = rows[0]["step"] / ranks / (step + exchange)
        rows[-1]["efficiency"] = share
        print(f"{ranks:9}  {own.tasks:10}  {step:6.3f}  {exchange:10.5f}  {share:10.0%}")
    return rows


def _in_processes(shape: tuple[int, int], cell: Cell, steps: int) -> float:
    """Seconds of an outer step in so many processes of so many threads."""
    ranks, threads = shape
    duty = partial(_steps, cell=cell, steps=steps)
    return float(_started(ranks, threads, duty))


def _steps(cell: Cell, steps: int) -> float:
    """Seconds of an outer step in this process of a group."""
    processes, device = joined(), torch.device("cpu")
    problem = make_problem(cell, device, torch.float32)
    batch = cell.batch(0, device, torch.float32)
    own = batch[task_to_compute(processes.part(batch.tasks))]
    problem.network.train()
    problem.prepare(own)
    strategy = make_strategy(cell)
    run = Run(problem, strategy, TrainSettings(), Path(), {}, processes=processes)
    chunk: Chunk = choose_chunk(problem, [run.strategy], own, norm="transductive")
    run.begin(chunk)

    def take() -> None:
        step = run.hypergradient(batch)
        run.check_finite(step)
        run.update(step)

    for _ in range(2):
        take()
    start = time.perf_counter()
    for _ in range(steps):
        take()
    return (time.perf_counter() - start) / steps


def _exchange_line() -> tuple[float, float]:
    """Seconds a message and bytes a second of the sum over two processes."""
    times = _started(2, 1, _sums)
    smallest, largest = BUFFERS[0], BUFFERS[-1]
    # Two processes send two messages, and half of the bytes in each of them.
    latency = times[0] / 2
    return latency, (largest - smallest) / (times[-1] - times[0])


def _sums() -> list[float]:
    processes, found = joined(), []
    for size in BUFFERS:
        buffer, times = torch.zeros(size // 4), []
        for _ in range(20):
            start = time.perf_counter()
            processes.sum(buffer)
            times.append(time.perf_counter() - start)
        found.append(sorted(times)[len(times) // 2])
    return found


def _started(ranks: int, threads: int, duty: Any) -> Any:
    """What a duty returns in the first of several processes."""
    with tempfile.TemporaryDirectory() as place:
        context = get_context("spawn")
        group = [
            context.Process(target=_member, args=(rank, ranks, threads, place, duty))
            for rank in range(ranks)
        ]
        for process in group:
            process.start()
        for process in group:
            process.join()
        return json.loads((Path(place) / "result.json").read_text())


def _member(rank: int, ranks: int, threads: int, place: str, duty: Any) -> None:
    torch.set_num_threads(threads)
    if ranks > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{place}/meet", rank=rank, world_size=ranks
        )
    found = duty()
    if rank == 0:
        (Path(place) / "result.json").write_text(json.dumps(found))
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
