"""``measure_hypergradient``: error of a strategy's hypergradient on a user's problem and tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewshot_blo.bilevel import Bilevel, OuterStep
from fewshot_blo.checks.backends import flat_step
from fewshot_blo.checks.inner import _SOLVER, solve_inner
from fewshot_blo.hypergrad import Implicit, State, Strategy
from fewshot_blo.hypergrad.implicit import ImplicitState
from fewshot_blo.hypergrad.linear_solve import OneStep
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.tasks import TaskBatch


@dataclass(frozen=True)
class HypergradientError:
    """A strategy's hypergradient compared with the exact one at the inner minimizer.

    Attributes:
        angle: angle between the two, in degrees.
        length: norm of the strategy's hypergradient relative to the exact one's.
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
    """Compares a strategy with implicit differentiation at the minimizer of the inner problem.

    The reference is the gradient of ``F(v*(u), u)`` with v* the minimizer of G. A difference is
    not an error of unrolling, which is exact for the inner steps that it takes.

    Args:
        problem: float64 problem, as the reference is solved to rounding.
        strategy: any strategy but Reptile, whose direction is not the gradient of a loss.
        batch: float64 tasks.
        norm: norm mode of the query set.

    Raises:
        ConfigurationError: if the problem's inner parameters are not minimizers, or Newton's
            method does not converge.
        StructuralZeroError: if neither loss depends on an outer variable.
    """
    problem.check_suits(Implicit(), "cold")
    problem.prepare(batch)
    # The first method is cheap, and raises at once if there is no hypergradient.
    methods = (Implicit(InnerSteps(0), solve=OneStep()), _Solved(), strategy)
    _, exact, found = (flat_step(problem, method, batch, norm)[1] for method in methods)
    length = float(found.norm() / exact.norm())
    # From sum and difference of unit vectors: the cosine of a small angle rounds to 1.
    a, b = found / found.norm(), exact / exact.norm()
    angle = 2 * math.degrees(math.atan2(float((a - b).norm()), float((a + b).norm())))
    return HypergradientError(angle, length)


@dataclass(frozen=True)
class _Solved(Strategy[State]):
    """Implicit differentiation at the minimizer of G."""

    def hypergradient(self, problem: Bilevel, state: State) -> OuterStep:
        del state
        solution = ImplicitState(solve_inner(problem))
        return Implicit(InnerSteps(0), solve=_SOLVER).hypergradient(problem, solution)
