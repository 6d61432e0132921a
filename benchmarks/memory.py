"""Peak tensor memory of one hypergradient against the number of inner steps.

    python benchmarks/memory.py [--steps 5 50]

Conv4-64 on 1x28x28 images, one 5-way 1-shot task with 15 queries a class, all parameters adapted
(``Initialization``, prox 0.5), float32.
"""

from __future__ import annotations

import argparse

import torch

from fewshot_blo import SGD, Adam, Conv4, Implicit, Initialization, Penalty, Unroll, classifier
from fewshot_blo.chunks import hypergradient
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.kernel.memory import peak_bytes
from tasks import ClassDataset, EpisodicSampler


def main() -> None:
    """Prints a table: one row a strategy, one column a number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 50])
    parser.add_argument("--tasks", type=int, default=1)
    arguments = parser.parse_args()

    dataset = ClassDataset(
        torch.randint(0, 256, (5 * 16, 1, 28, 28), dtype=torch.uint8),
        torch.arange(5).repeat_interleave(16),
        tuple("abcde"),
    )
    batch = EpisodicSampler(dataset, way=5, shot=1, query=15, tasks=arguments.tasks).batch(0)
    problem = Initialization(classifier(Conv4(), 64, 5), prox=0.5, backend="loop")

    print(f"{'peak MiB with inner steps':32}" + "".join(f"{n:>10}" for n in arguments.steps))
    for name in _strategies(1):
        peaks = []
        for steps in arguments.steps:
            strategy = _strategies(steps)[name]
            peaks.append(peak_bytes(lambda s=strategy: hypergradient(problem, s, s.init(), batch)))
        ratio = f"   x {peaks[-1] / peaks[0]:.2f}"
        print(f"{name:32}" + "".join(f"{p / 2**20:10.0f}" for p in peaks) + ratio)


def _strategies(steps: int) -> dict[str, Strategy]:
    rule = SGD(0.01)
    return {
        "unroll": Unroll(steps, rule),
        "unroll, recompute": Unroll(steps, rule, recompute=True),
        "unroll, first order": Unroll(steps, rule, first_order=True),
        "implicit, 5 conjugate gradients": Implicit(steps, rule),
        "penalty": Penalty(steps, Adam(1e-3)),
    }


if __name__ == "__main__":
    main()
