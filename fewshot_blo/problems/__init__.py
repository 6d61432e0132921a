"""Few-shot problems: they join tasks, networks and the interface of the strategies."""

from __future__ import annotations

from fewshot_blo.problems.few_shot import BoundTasks, FewShotProblem, NormMode
from fewshot_blo.problems.initialization import Initialization
from fewshot_blo.problems.pretraining import Pretraining
from fewshot_blo.problems.shared_encoder import SharedEncoder

PROBLEMS = (SharedEncoder, Initialization, Pretraining)
"""What the command line and recipes know."""

__all__ = [
    "PROBLEMS",
    "BoundTasks",
    "FewShotProblem",
    "Initialization",
    "NormMode",
    "Pretraining",
    "SharedEncoder",
]
