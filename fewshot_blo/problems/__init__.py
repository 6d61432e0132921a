"""Few-shot problems, which state batches of tasks as bilevel problems for the strategies."""

from __future__ import annotations

from fewshot_blo.problems.few_shot import BoundTasks, FewShotProblem, NormMode
from fewshot_blo.problems.initialization import Initialization
from fewshot_blo.problems.pretraining import Pretraining
from fewshot_blo.problems.shared_encoder import SharedEncoder

PROBLEMS = (SharedEncoder, Initialization, Pretraining)
"""The problems that the command line and recipes can choose."""

__all__ = [
    "PROBLEMS",
    "BoundTasks",
    "FewShotProblem",
    "Initialization",
    "NormMode",
    "Pretraining",
    "SharedEncoder",
]
