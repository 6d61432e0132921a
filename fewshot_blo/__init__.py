"""Few-shot learning as bilevel optimisation, in PyTorch."""

from __future__ import annotations

from fewshot_blo.allocator import keep_freed_memory
from fewshot_blo.bilevel import Bilevel, OuterStep
from fewshot_blo.hypergrad import (
    BOME,
    Implicit,
    Penalty,
    Phases,
    Reptile,
    Unroll,
    ValueFunction,
)
from fewshot_blo.kernel import SGD, Adam, LearnedSGD, Momentum
from fewshot_blo.linear_solve import ConjugateGradient, Neumann, OneStep
from fewshot_blo.networks import (
    Conv4,
    CosineHead,
    FullContextHead,
    LabelPropagationHead,
    LinearHead,
    MatchingHead,
    MaxMarginHead,
    RelationHead,
    ResNet12,
    RidgeHead,
    TailHead,
    WideResNet,
    classifier,
)
from fewshot_blo.problems import Initialization, PlainProblem, Pretraining, SharedEncoder

__all__ = [
    "BOME",
    "SGD",
    "Adam",
    "Bilevel",
    "ConjugateGradient",
    "Conv4",
    "CosineHead",
    "FullContextHead",
    "Implicit",
    "Initialization",
    "LabelPropagationHead",
    "LearnedSGD",
    "LinearHead",
    "MatchingHead",
    "MaxMarginHead",
    "Momentum",
    "Neumann",
    "OneStep",
    "OuterStep",
    "Penalty",
    "Phases",
    "PlainProblem",
    "Pretraining",
    "RelationHead",
    "Reptile",
    "ResNet12",
    "RidgeHead",
    "SharedEncoder",
    "TailHead",
    "Unroll",
    "ValueFunction",
    "WideResNet",
    "classifier",
    "keep_freed_memory",
]
