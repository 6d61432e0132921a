"""Time of drawing a batch of tasks beside the training step that it feeds.

    python benchmarks/sampler.py [--tasks 32] [--repeats 10]

Synthetic images in the shape of Omniglot's meta-training split (4112 classes of 20 images,
1x28x28). The step is first-order unrolling of a shared Conv4-64 encoder, the cheapest there is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from fewshot_blo import Conv4, SharedEncoder, Unroll
from fewshot_blo.tasks import ClassDataset, EpisodicSampler
from fewshot_blo.training.step import hypergradient


def main() -> None:
    """Prints both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    classes, images = 4112, 20
    dataset = ClassDataset(
        torch.randint(0, 256, (classes * images, 1, 28, 28), dtype=torch.uint8),
        torch.arange(classes).repeat_interleave(images),
        tuple(str(n) for n in range(classes)),
    ).to(arguments.device)
    sampler = EpisodicSampler(dataset, way=5, shot=1, query=15, tasks=arguments.tasks)
    problem = SharedEncoder(Conv4().to(arguments.device))
    strategy = Unroll(first_order=True)
    batch = sampler.batch(0)
    problem.prepare(batch)

    draw = _seconds(lambda: sampler.batch(1), arguments.repeats, batch.support_x.device)
    step = _seconds(
        lambda: hypergradient(problem, strategy, strategy.init(), batch, chunk=4),
        arguments.repeats,
        batch.support_x.device,
    )
    print(f"{arguments.tasks} tasks on {arguments.device}, {torch.get_num_threads()} threads")
    print(f"drawing {1e3 * draw:.1f} ms, step {1e3 * step:.0f} ms: {100 * draw / step:.2f} %")


def _seconds(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median of several runs after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
