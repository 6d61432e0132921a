"""Few-shot learning as bilevel optimisation, in PyTorch."""

from __future__ import annotations

from fewshot_blo.allocator import keep_freed_memory
from fewshot_blo.bilevel import Bilevel, OuterStep
from fewshot_blo.hypergrad import Implicit, Penalty, Unroll
from fewshot_blo.kernel import SGD, Adam, LearnedSGD, Momentum
from fewshot_blo.linear_solve import ConjugateGradient, Neumann, OneStep
from fewshot_blo.networks import Conv4, CosineHead, LinearHead, ResNet12, classifier
from fewshot_blo.problems import Initialization, SharedEncoder

__all__ = [
    "SGD",
    "Adam",
    "Bilevel",
    "ConjugateGradient",
    "Conv4",
    "CosineHead",
    "Implicit",
    "Initialization",
    "LearnedSGD",
    "LinearHead",
    "Momentum",
    "Neumann",
    "OneStep",
    "OuterStep",
    "Penalty",
    "ResNet12",
    "SharedEncoder",
    "Unroll",
    "classifier",
    "keep_freed_memory",
]
