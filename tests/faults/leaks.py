"""Memory and open files after many outer steps, and after many fits."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from small_images import NAMES, network, picture
from small_runs import make_dataset, make_problem, make_sampler

from faults.row import Row
from fewshot_blo.finetune import LabelledImages, Source, fit
from fewshot_blo.finetune.images import as_pixels
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.training.settings import TrainSettings
from fewshot_blo.training.train import train


def measure(place: Path, steps: int, fits: int) -> Iterator[Row]:
    """A row of outer steps and one of fits.

    Args:
        place: an empty folder to work in.
        steps: number of outer steps.
        fits: number of fits.
    """
    row = Row("leaks", f"{steps} outer steps")
    settings = TrainSettings(steps=steps // 4, validate_every=steps, validation_tasks=2, chunk=3)
    tasks, problem = make_sampler(make_dataset()), make_problem()

    def run() -> object:
        folder = Path(tempfile.mkdtemp(dir=place))
        strategy = Unroll(InnerSteps(1, SGD(0.1)))
        return train(
            problem, strategy, tasks, tasks, folder=folder, settings=settings, progress=False
        )

    row.add(_grows(run, 4, limit=8 * 2**20))
    yield row
    row = Row("leaks", f"{fits} fits")
    images = [picture(colour, number) for colour in range(3) for number in range(3)]
    labels = torch.arange(3).repeat_interleave(3)
    data = LabelledImages(as_pixels(images, 16), labels, NAMES, ())
    source = Source("small_networks:network")

    def some() -> object:
        for _ in range(fits // 5):
            fit(data, network(), source, progress=False)
        return None

    row.add(_grows(some, 5, limit=8 * 2**20))
    yield row


def _grows(run: Callable[[], object], rounds: int, limit: int) -> str | None:
    """By how much memory grows in the last rounds, if by more than the limit, or open files."""
    used, files = [], []
    for _ in range(rounds):
        run()
        gc.collect()
        used.append(_resident())
        files.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
    growth = used[-1] - used[1]
    if growth > limit:
        return f"resident memory grows by {growth / 2**20:.1f} MiB: {[u // 2**20 for u in used]}"
    if files[-1] > files[1]:
        return f"open files grow: {files}"
    return None


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
