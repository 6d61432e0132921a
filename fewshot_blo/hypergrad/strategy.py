"""The protocol of a hypergradient strategy, and the driver that runs one over chunks of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, Literal

import torch
from torch import Tensor
from typing_extensions import Self, TypeVar  # With defaults from Python 3.13 on.

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel import InnerSteps, Order
from fewshot_blo.records.shapes import shapes


@dataclass(frozen=True)
class State:
    """What a strategy carries from one outer step to the next: tensors only, as in a checkpoint.

    A strategy adds fields in a subclass: 0-dimensional float64 tensors for schedules, on the host
    or on the tasks' device; and mappings of tensors ``[T, ...]``, which belong to single tasks.

    Attributes:
        inner: inner parameters to start from, ``[T, ...]`` (warm start); empty for a cold start.
    """

    inner: TaskParams = field(default_factory=dict)

    def __repr__(self) -> str:
        schedules = [f"{name} {float(value):.4g}" for name, value in self.schedules.items()]
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        tasks = [f"{n}: {shapes(part)}" for n, part in parts.items() if n not in self.schedules]
        return f"{type(self).__name__}({', '.join(schedules)}\n  " + "\n  ".join(tasks) + ")"

    def plain(self) -> dict[str, Any]:
        """The state as plain data for a checkpoint; ``restored`` is the inverse."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def restored(self, plain: Mapping[str, Any], device: torch.device | str = "cpu") -> Self:
        """A state of this class from what ``plain`` returned, on a device.

        Raises:
            TypeError: if the fields are those of another class.
        """
        return type(self)(**plain).map(lambda x: x.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The state with a function applied to every tensor."""
        changed: dict[str, Any] = {}
        for f in fields(self):
            part = getattr(self, f.name)
            tensor = isinstance(part, Tensor)
            changed[f.name] = change(part) if tensor else {n: change(x) for n, x in part.items()}
        return type(self)(**changed)

    @property
    def schedules(self) -> dict[str, Tensor]:
        """The 0-dimensional tensors by name."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: part for name, part in parts.items() if isinstance(part, Tensor)}

    def tasks(self, part: slice) -> Self:
        """The state of some of the tasks."""
        return self.map(lambda x: x[part] if x.ndim else x)

    def cold(self) -> Self:
        """The state for new tasks: without what belongs to single tasks."""
        return replace(self, **{f.name: {} for f in fields(self) if f.name not in self.schedules})


def _plain(part: Any) -> Any:
    return part if isinstance(part, Tensor) else dict(part)


Own = TypeVar("Own", bound=State, default=Any)

Bears = Literal["none", "fixed sets", "sets", "all"]
"""Constraints of the inner problem that a strategy is right with: none, sets of single parameters
that do not depend on the outer variables, such sets that do, or all."""

Sees = Literal["start", "rule", "inner", "outer"]
"""Where an outer variable can be: in the start of the inner problem, in its update rule, in the
inner loss, in the outer loss."""


class Strategy(Generic[Own]):
    """How to solve the inner problems and differentiate through their solution.

    A strategy is a frozen dataclass of settings with three pure functions. ``hypergradient`` is
    a mean over tasks, so it may run on chunks of tasks; what depends on all tasks of a step, such
    as a schedule, belongs in ``advance``.

    Attributes:
        inner: number and rule of the inner steps.
    """

    inner: InnerSteps

    @property
    def derivatives(self) -> Order:
        """Highest order of derivatives of the losses that it takes."""
        return "second"

    @property
    def sees(self) -> Sequence[Sees]:
        """Where outer variables may be; one that is in none of these has no hypergradient."""
        return ("inner", "outer")

    @property
    def needs_minimiser(self) -> bool:
        """Whether the inner parameters must be near a minimiser of the inner loss.

        A head whose parameters are a formula of the support set then needs another strategy.
        """
        return True

    @property
    def bears(self) -> Bears:
        """Which constraints of the inner problem it is right with."""
        return "none"

    @property
    def learns_start(self) -> bool:
        """Whether derivatives go through the start of the inner problem, which must be its own."""
        return "start" in self.sees

    @property
    def needs_warm_start(self) -> bool:
        """Whether it takes too few inner steps for an inner problem that starts anew."""
        return False

    @property
    def is_derivative(self) -> bool:
        """Whether hypergradients approximate the derivative of the outer loss that is beside them.

        A line search along them then finds a lower one.
        """
        return True

    @property
    def follows(self) -> bool:
        """Whether inner problems or linear systems are not solved in an outer step but followed.

        The outer learning rate is then one of the method's step sizes, which must fit each other.
        """
        return False

    @property
    def step_kind(self) -> type[OuterStep]:
        """The class that ``hypergradient`` returns."""
        return OuterStep

    def init(self) -> Own:
        """The state before the first outer step."""
        return State()  # type: ignore[return-value]

    def hypergradient(self, problem: Bilevel, state: Own) -> OuterStep:
        """Solves the inner problems and differentiates the mean outer loss."""
        raise NotImplementedError

    def advance(self, state: Own, step: Any) -> Own:
        """The state after a step over all tasks; by default with its inner parameters."""
        return replace(state, inner=step.inner)

    def at(self, step: int) -> Strategy:
        """The strategy of outer step ``step``, counted from 0."""
        return next(phase for start, phase in reversed(self.phases) if start <= step)

    def settled(self, problem: Bilevel) -> Strategy[Own]:
        """The strategy with the weights that are unset chosen from measurements of a problem."""
        return self

    def for_training(self) -> Strategy[Own]:
        """The strategy with the usual settings of few-shot training where they are unset."""
        return self

    def coarseness(self, state: Own, problem: Bilevel) -> float:
        """How far the hypergradient is that of a smoothed problem, which ``refined`` lowers."""
        return 0.0

    def refined(self, state: Own) -> Own | None:
        """The state for a closer approximation, once u has converged at this one; None if it is
        as close as it gets."""
        return None

    def with_recompute(self, recompute: bool | None) -> Strategy[Own]:
        """The strategy with ``recompute`` set where it is left open; None for its own rule."""
        return self

    def shortened(self, steps: int) -> Strategy[Own]:
        """The strategy with at most ``steps`` inner steps, to extrapolate time and memory from."""
        return self

    @property
    def phases(self) -> tuple[tuple[int, Strategy], ...]:
        """The strategies of training with the outer step where each begins; one class of state."""
        return ((0, self),)


def check_constraints(strategy: Strategy, problem: Bilevel) -> None:
    """Raises ConfigurationError where a strategy is not right with the inner constraints."""
    constraints, bears = problem.constraints, strategy.bears
    if constraints is None or bears == "all":
        return
    if bears == "none":
        what = "the inner problem has constraints"
    elif constraints.project is None:
        what = "the inner problem has constraints that are functions of v and u"
    elif bears == "fixed sets" and not constraints.fixed:
        what = "the inner problem has bounds that depend on the outer variables"
    else:
        return
    raise ConfigurationError(
        f"{what}, with which {type(strategy).__name__}'s hypergradient is wrong: use Implicit"
        + ("" if constraints.project is None else ", or Unroll")
    )


def outer_step(strategy: Strategy[Own], problem: Bilevel, state: Own) -> tuple[OuterStep, Own]:
    """One outer step of a problem that fits into memory at once."""
    check_constraints(strategy, problem)
    step = strategy.hypergradient(problem, state)
    step.check_finite(type(strategy).__name__)
    return step, strategy.advance(state, step)


def initial(method: str, name: str, value: float | None) -> Tensor:
    """A weight at its start, for a state.

    Raises:
        ConfigurationError: if it is unset.
    """
    if value is None:
        raise ConfigurationError(
            f"{method}: {name} is unset: give a number, or let settled(problem) choose one"
        )
    return torch.tensor(value, dtype=torch.float64)


def check_start(strategy: Strategy, start: object) -> None:
    """Raises ConfigurationError if inner problems start cold and the strategy needs them warm."""
    if start == "cold" and strategy.needs_warm_start:
        raise ConfigurationError(
            f"start is cold, and {type(strategy).__name__} moves the inner parameters by one step "
            "from where the last outer step left them: use start=warm, or AmIGO or StocBiO, which "
            "take several steps"
        )


def inner_start(problem: Bilevel, state: State) -> TaskParams:
    """Where the inner problems start: the state's parameters if warm, the problem's if cold."""
    return state.inner or problem.inner_init
