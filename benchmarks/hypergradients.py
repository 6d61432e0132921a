"""Cosine and length of each strategy's hypergradient beside the exact one, in float64.

    python benchmarks/hypergradients.py [--checkpoint runs/glyphs/best.pt]

A shared Conv4-64 encoder on 8 glyph tasks (5-way, 1-shot, 5 queries a class), with random weights
or those of a checkpoint. "Exact" is implicit differentiation with inner problem and linear system
solved to convergence.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from fewshot_blo import (
    BOME,
    SGD,
    Adam,
    ConjugateGradient,
    Conv4,
    Implicit,
    Penalty,
    SharedEncoder,
    Unroll,
    ValueFunction,
)
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.tasks import EpisodicSampler, glyphs
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.step import hypergradient

EXACT = Implicit(InnerSteps(2000, SGD(0.3)), ConjugateGradient(100))
STRATEGIES: dict[str, Strategy] = {
    "unroll, 5 steps": Unroll(InnerSteps(5, SGD(0.5))),
    "unroll, 5 steps, first order": Unroll(InnerSteps(5, SGD(0.5)), first_order=True),
    "implicit, 10 steps, CG 5": Implicit(InnerSteps(10, SGD(0.5))),
    "penalty, ρ 10, 20 steps of SGD 0.05": Penalty(InnerSteps(20, SGD(0.05)), rho=10),
    "penalty, ρ 10, 20 steps of Adam 0.05": Penalty(InnerSteps(20, Adam(0.05)), rho=10),
    "penalty, ρ 0.01, 20 steps of Adam 0.01": Penalty(InnerSteps(20, Adam(0.01))),
    "penalty, ρ 10, converged": Penalty(InnerSteps(5000, SGD(0.02)), rho=10),
    "value function, λ 1, 20 and 20 steps": ValueFunction(InnerSteps(20, SGD(0.5)), 20, lam=1),
    "value function, λ 10, 20 and 20 steps": ValueFunction(InnerSteps(20, SGD(0.5)), 20, lam=10),
    "value function, λ 100, 20 and 20 steps": ValueFunction(InnerSteps(20, SGD(0.5)), 20, lam=100),
    "value function, λ 10, z from v": ValueFunction(
        InnerSteps(20, SGD(0.5)), 20, lam=10, continued=True
    ),
    "value function, λ 100, converged": ValueFunction(InnerSteps(2000, SGD(0.5)), 2000, lam=100),
    "BOME, η 0.5, 10 and 5 steps": BOME(InnerSteps(10, SGD(0.5)), 5, 0.5),
    "BOME, η 0.1, 20 and 20 steps": BOME(InnerSteps(20, SGD(0.1)), 20, 0.1),
    "F_u alone, 5 steps": Penalty(InnerSteps(5, SGD(0.5)), rho=0, lam=0, multiplier=0),
}


STRATEGIES = {name: strategy.for_training() for name, strategy in STRATEGIES.items()}


def main() -> None:
    """Prints one row a strategy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    problem = SharedEncoder(Conv4().double(), backend="loop")
    if arguments.checkpoint:
        checkpoints.load(arguments.checkpoint).restore(problem)
    sampler = EpisodicSampler(
        glyphs.load().train, way=5, shot=1, query=5, tasks=8, seed=3, dtype=torch.float64
    )
    batch = sampler.batch(0)

    def gradient(strategy: Strategy) -> Tensor:
        step = hypergradient(problem, strategy, strategy.init(), batch)
        return torch.cat([g.flatten() for g in step.gradient.values()])

    exact = gradient(EXACT)
    print(f"{'':42}  cosine  length / exact")
    for name, strategy in STRATEGIES.items():
        g = gradient(strategy)
        cosine = float(g @ exact / (g.norm() * exact.norm()))
        print(f"{name:42}  {cosine:6.4f}  {float(g.norm() / exact.norm()):.3f}", flush=True)


if __name__ == "__main__":
    main()
