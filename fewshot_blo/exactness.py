"""How well inner problems are solved, and how exact hypergradients are, on a user's own tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams, task_dot
from fewshot_blo.check import flat_step
from fewshot_blo.chunks import dropout_keys
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Implicit, Phases, State, Strategy
from fewshot_blo.hypergrad.strategy import EMPTY_STATE, inner_gradients
from fewshot_blo.kernel import UpdateRule, adapt
from fewshot_blo.linear_solve import ConjugateGradient, OneStep, add_scaled
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.suitability import check_suits
from tasks import TaskBatch

_HALVINGS = 30
_SOLVER = ConjugateGradient(steps=100)


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
    check_suits(problem, Phases(((0, Implicit()),)), "cold")
    problem.prepare(batch)
    # The first says at once where there can be none.
    methods = (Implicit(0, solve=OneStep()), _Solved(), strategy)
    _, exact, found = (flat_step(problem, method, batch, norm)[1] for method in methods)
    length = float(found.norm() / exact.norm())
    # By halves of sum and difference: the cosine of a small angle is one to rounding.
    a, b = found / found.norm(), exact / exact.norm()
    angle = 2 * math.degrees(math.atan2(float((a - b).norm()), float((a + b).norm())))
    return HypergradientError(angle, length)


@dataclass(frozen=True)
class _Solved:
    """Implicit differentiation at the minimiser of G."""

    def init(self) -> State:
        return EMPTY_STATE

    def hypergradient(self, problem: Bilevel, state: State) -> OuterStep:
        solution = replace(state, inner=solve_inner(problem))
        return Implicit(0, solve=_SOLVER).hypergradient(problem, solution)

    def advance(self, state: State, step: OuterStep) -> State:
        del step
        return state


def inner_losses(
    problem: FewShotProblem,
    batch: TaskBatch,
    *,
    steps: int,
    rule: UpdateRule,
    norm: NormMode = "transductive",
) -> Tensor:
    """Inner losses before the first of the inner steps and after each, ``[steps + 1, T]``.

    Where they rise, the steps are too long: the strategies other than unrolling take the result
    for a minimiser, and then lead the outer variables to where it is none.

    Args:
        problem: any.
        batch: tasks.
        steps: number of inner steps.
        rule: the update rule.
        norm: norm mode of the query set.
    """
    problem.prepare(batch)
    problem.network.train()
    bilevel = problem.bind(batch, norm, dropout_keys(batch, 0, 0)).bilevel
    losses = []

    def recorded(inner: TaskParams) -> Tensor:
        loss = bilevel.inner_loss(inner)
        losses.append(loss.detach())
        return loss

    end = adapt(recorded, bilevel.inner_init, steps=steps, rule=rule, outer=bilevel.outer)
    recorded(end)
    return torch.stack(losses)


def solve_inner(problem: Bilevel, *, steps: int = 20, tolerance: float = 1e-7) -> TaskParams:
    """The minimisers of G, ``[T, ...]``, by Newton's method from the start of the inner problem.

    Newton's directions are found by conjugate gradients and halved until G falls enough.

    Args:
        problem: with an inner loss that is convex near its start.
        steps: at most.
        tolerance: norm of the gradient of each task, relative to that at the start; 1e-10 will do
            where the start is the solution.

    Raises:
        ConfigurationError: if the gradient is larger after all steps.

    Source: Nocedal & Wright, "Numerical Optimization", Newton-CG with a line search.
    """
    v = {name: p.detach().requires_grad_() for name, p in problem.inner_init.items()}
    target: Tensor | None = None
    for _ in range(steps):
        loss = problem.inner_loss(v)
        g = inner_gradients(loss.sum(), v, create_graph=True)
        squared = task_dot(g, g).detach()
        target = (tolerance**2 * squared).clamp(min=1e-20) if target is None else target
        if (squared <= target).all():
            return {name: p.detach() for name, p in v.items()}
        v = _newton_step(problem.inner_loss, v, g, loss.detach())
    raise ConfigurationError(
        f"the inner problem is not solved after {steps} steps of Newton's method: its loss is not "
        "convex or not smooth there; a larger prox makes it so"
    )


def _newton_step(
    inner_loss: Callable[[TaskParams], Tensor], v: TaskParams, g: TaskParams, loss: Tensor
) -> TaskParams:
    def hessian_product(x: TaskParams) -> TaskParams:
        return inner_gradients(task_dot(g, x).sum(), v)

    direction = _SOLVER(hessian_product, {name: -p.detach() for name, p in g.items()})
    slope = task_dot(g, direction).detach()
    length = torch.ones_like(loss)
    for _ in range(_HALVINGS):
        rounding = 1e-14 * (1 + loss.abs())  # A small loss is a difference of larger numbers.
        with torch.no_grad():
            moved = add_scaled(v, length, direction)
            fallen = inner_loss(moved) <= loss + 1e-4 * length * slope + rounding
        if fallen.all():
            break
        length = torch.where(fallen, length, length / 2)
    return {name: p.requires_grad_() for name, p in moved.items()}
