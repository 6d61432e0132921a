"""Tasks from a set of images that is larger than the memory a process may hold.

    python benchmarks/larger_than_memory.py [--classes 20000] [--size 64] [--batches 1000]

Makes images, keeps them in the cache folder of ``--folder`` as data sets do (4.6 GiB by default),
and removes them at the end. A new process then maps the file and draws batches. It prints its
memory: private bytes are those that only it holds and that the system cannot give away; the pages
of the map are clean, shared by all processes, and given away when memory is short. For a limit that
the set exceeds, run it as in ``systemd-run --user --scope -p MemoryMax=1G python benchmarks/...``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot_blo.machine.memory import free_bytes
from fewshot_blo.tasks import ClassDataset, EpisodicSampler
from fewshot_blo.tasks.reading import digests
from fewshot_blo.tasks.reading.decoded import decoded_once

_EVERY = 50
"""Batches from one look at the memory to the next."""


def main() -> None:
    """Makes the set, measures in another process, and removes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=1_000)
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        _measure(arguments)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        start = time.perf_counter()
        _load(arguments)
        size = arguments.classes * arguments.images * 3 * arguments.size**2
        seconds = time.perf_counter() - start
        print(
            f"{arguments.classes} classes of {arguments.images} images, {size / 2**30:.2f} GiB, "
            f"written and read in {seconds:.0f} s"
        )
        time.sleep(digests._SETTLED)
        subprocess.run([sys.executable, *sys.argv, "--measure"], check=True)


def _load(arguments: argparse.Namespace) -> ClassDataset:
    shape = (3, arguments.size, arguments.size)

    def made() -> Iterator[tuple[str, Iterator[NDArray[np.uint8]]]]:
        noise = np.random.default_rng(0).integers(0, 256, (64, *shape), dtype=np.uint8)
        for number in range(arguments.classes):
            images = (
                noise[(number + k) % 64] ^ np.uint8(number % 251) for k in range(arguments.images)
            )
            yield f"class {number}", images

    return decoded_once(None, "made", "made", shape, made)


def _measure(arguments: argparse.Namespace) -> None:
    """Loads the set twice and draws tasks from it."""
    torch.set_num_threads(1)
    before = _memory()
    for time_of in ("first load, which reads the file", "next load, which does not"):
        start = time.perf_counter()
        dataset = _load(arguments)
        print(f"{time_of}: {time.perf_counter() - start:.2f} s")
    print(f"{free_bytes(torch.device('cpu')) / 2**30:.2f} GiB of memory are free")
    sampler = EpisodicSampler(dataset, way=5, shot=1, query=15, tasks=arguments.tasks)
    peak, start = _memory(), time.perf_counter()
    for index in range(arguments.batches):
        sampler.batch(index)
        if index % _EVERY == 0:
            peak = {name: max(value, peak[name]) for name, value in _memory().items()}
    seconds = time.perf_counter() - start
    drawn = arguments.batches * arguments.tasks
    print(f"{drawn} tasks in {seconds:.1f} s: {drawn / seconds:.0f} tasks/s, one thread")
    for name, value in peak.items():
        print(f"{name:>13}: {before[name]:6.0f} MiB before, {value:6.0f} MiB at most")


def _memory() -> dict[str, float]:
    """Resident MiB of this process: all, its own part of what is shared, its own alone."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    return {name: found[name] for name in ("Rss", "Pss", "Private_Dirty")}


if __name__ == "__main__":
    main()
