"""How well inner problems are solved, and how exact hypergradients are, on a user's own tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fewshot_blo.bilevel import Bilevel, OuterStep
from fewshot_blo.checks.backends import flat_step
from fewshot_blo.checks.inner import _SOLVER, solve_inner
from fewshot_blo.hypergrad import Implicit, State, Strategy
from fewshot_blo.hypergrad.linear_solve import OneStep
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.tasks import TaskBatch


@dataclass(frozen=True)
class HypergradientError:
    """A strategy's hypergradient beside the one at the solution of the inner problem.

    Attributes:
        angle: between the two, in degrees.
        length: of the strategy's, relative to the other's.
    """

    angle: float
    length: float


def measure_hypergradient(
    problem: FewShotProblem,
    strategy: Strategy,
    batch: TaskBatch,
    *,
    norm: NormMode = "transductive",
) -> HypergradientError:
    """Compares a strategy with implicit differentiation where the inner problem is solved.

    What is exact here is the gradient of ``F(v*(u), u)``, v* the minimiser of G. Unrolling is no
    worse where it differs: it is exact for the inner steps that it takes.

    Args:
        problem: of float64, for the reference is solved to rounding.
        strategy: any but Reptile, which has no gradient of a loss.
        batch: float64 tasks.
        norm: norm mode of the query set.

    Raises:
        ConfigurationError: if the problem's inner parameters are no minimisers, or Newton's method
            finds none.
        StructuralZeroError: if an outer variable is in no loss.
    """
    problem.check_suits(Implicit(), "cold")
    problem.prepare(batch)
    # The first says at once where there can be none.
    methods = (Implicit(InnerSteps(0), solve=OneStep()), _Solved(), strategy)
    _, exact, found = (flat_step(problem, method, batch, norm)[1] for method in methods)
    length = float(found.norm() / exact.norm())
    # By halves of sum and difference: the cosine of a small angle is one to rounding.
    a, b = found / found.norm(), exact / exact.norm()
    angle = 2 * math.degrees(math.atan2(float((a - b).norm()), float((a + b).norm())))
    return HypergradientError(angle, length)


@dataclass(frozen=True)
class _Solved(Strategy[State]):
    """Implicit differentiation at the minimiser of G."""

    def hypergradient(self, problem: Bilevel, state: State) -> OuterStep:
        solution = replace(state, inner=solve_inner(problem))
        return Implicit(InnerSteps(0), solve=_SOLVER).hypergradient(problem, solution)
