"""Any bilevel problem: two losses of two dictionaries of parameters, and their driver."""

from __future__ import annotations

from fewshot_blo.solving.driver import Partial, Solution, solve
from fewshot_blo.solving.problem import PlainProblem

__all__ = ["Partial", "PlainProblem", "Solution", "solve"]
