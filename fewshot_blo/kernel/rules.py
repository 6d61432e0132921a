"""Update rules of the inner problem: pure functions of gradients, state and parameters.

Every operation is differentiable, so that unrolled steps can be differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams, task_dot
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.outer_variables import OuterVariables
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Decay, NonNegative, Positive

RuleState = dict[str, TaskParams]

TENTATIVE = "tentative"
"""In the state of a rule that measures curvature: the tasks, ``[T]``, whose last step was of an
arbitrary length, as nothing was measured yet. A short one of these solves nothing."""


class UpdateRule(Protocol):
    """One inner step: ``init`` once, then ``update`` at every step."""

    def init(self, params: TaskParams, outer: Params) -> RuleState:
        """The state before the first step; ``outer`` holds learned step sizes, if any."""
        ...

    def update(
        self, gradients: TaskParams, state: RuleState, params: TaskParams, step: int
    ) -> tuple[TaskParams, RuleState]:
        """New parameters and state after the step with index ``step``, counted from 0."""
        ...


@checked
@dataclass(frozen=True)
class SGD:
    """Gradient descent, ``v ← v - α g``.

    Attributes:
        step_size: step size α of the inner steps.
    """

    step_size: NonNegative = 0.1

    def init(self, params: TaskParams, outer: Params) -> RuleState:
        """No state."""
        del params, outer
        return {}

    def update(
        self, gradients: TaskParams, state: RuleState, params: TaskParams, step: int
    ) -> tuple[TaskParams, RuleState]:
        """One gradient step."""
        del step
        new = {n: torch.add(p, gradients[n], alpha=-self.step_size) for n, p in params.items()}
        return new, state


@checked
@dataclass(frozen=True)
class Momentum:
    """Gradient descent with momentum, ``m ← μ m + g``, ``v ← v - α m``.

    This is Polyak's heavy ball in PyTorch's convention.

    Attributes:
        step_size: step size α of the inner steps.
        momentum: factor μ of the momentum, in [0, 1).
    """

    step_size: NonNegative = 0.1
    momentum: Decay = 0.9

    def init(self, params: TaskParams, outer: Params) -> RuleState:
        """Zero momentum."""
        del outer
        return {"momentum": {name: torch.zeros_like(p) for name, p in params.items()}}

    def update(
        self, gradients: TaskParams, state: RuleState, params: TaskParams, step: int
    ) -> tuple[TaskParams, RuleState]:
        """One step along the momentum."""
        del step
        momentum = {n: self.momentum * m + gradients[n] for n, m in state["momentum"].items()}
        new = {n: torch.add(p, momentum[n], alpha=-self.step_size) for n, p in params.items()}
        return new, {"momentum": momentum}


@checked
@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba, arXiv 1412.6980, algorithm 1).

    ``eps_root`` is added under the square root: without it the derivative of a step at a zero
    gradient is infinite, and unrolling through dead units gives NaN.

    Attributes:
        step_size: step size α of the inner steps.
        beta1: decay rate of the moving average of gradients, in [0, 1).
        beta2: decay rate of the moving average of squared gradients, in [0, 1).
        eps: constant added to the root of the average of squared gradients.
        eps_root: constant added under that root.
    """

    step_size: NonNegative = 1e-2
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: NonNegative = 1e-8
    eps_root: NonNegative = 1e-16

    def init(self, params: TaskParams, outer: Params) -> RuleState:
        """Zero moments."""
        del outer
        return {
            moment: {name: torch.zeros_like(p) for name, p in params.items()}
            for moment in ("mean", "square")
        }

    def update(
        self, gradients: TaskParams, state: RuleState, params: TaskParams, step: int
    ) -> tuple[TaskParams, RuleState]:
        """One step along the bias-corrected moments."""
        b1, b2 = self.beta1, self.beta2
        mean = {n: b1 * m + (1 - b1) * gradients[n] for n, m in state["mean"].items()}
        square = {n: b2 * s + (1 - b2) * gradients[n] ** 2 for n, s in state["square"].items()}
        mean_scale, square_scale = 1 - b1 ** (step + 1), 1 - b2 ** (step + 1)
        new = {}
        for name, p in params.items():
            root = (square[name] / square_scale + self.eps_root).sqrt()
            new[name] = p - self.step_size * (mean[name] / mean_scale) / (root + self.eps)
        return new, {"mean": mean, "square": square}


@checked
@dataclass(frozen=True)
class AdGD:
    """Gradient descent whose step size follows from the curvature that it meets.

    ``α_k = min(sqrt(1 + α_{k-1} / α_{k-2}) α_{k-1}, |v_k - v_{k-1}| / (2 |g_k - g_{k-1}|))``, for
    each task by itself. It converges on any convex loss whose gradient is locally Lipschitz. The
    step sizes are constants to derivatives.

    Attributes:
        first: length of the first step, relative to ``1 + |v|``.

    Source: Malitsky & Mishchenko, "Adaptive Gradient Descent without Descent" (arXiv 1910.09529),
    algorithm 1.
    """

    first: Positive = 1e-4

    def init(self, params: TaskParams, outer: Params) -> RuleState:
        """No step was taken."""
        del params, outer
        return {}

    def update(
        self, gradients: TaskParams, state: RuleState, params: TaskParams, step: int
    ) -> tuple[TaskParams, RuleState]:
        """One gradient step."""
        del step
        g = {name: x.detach() for name, x in gradients.items()}
        v = {name: x.detach() for name, x in params.items()}
        norm = task_dot(g, g).sqrt()
        if state:
            sizes = state["sizes"]
            last, ratio = sizes["step_size"], sizes["ratio"]
            moved, turned = _difference(v, state["params"]), _difference(g, state["gradients"])
            s, y = task_dot(moved, moved).sqrt(), task_dot(turned, turned).sqrt()
            # Where nothing moved or the gradient is constant, there is no curvature to go by.
            by_curvature = torch.where((s > 0) & (y > 0), s / (2 * y), torch.inf)
            size = torch.minimum((1 + ratio).sqrt() * last, by_curvature)
            # Growth is unlimited until curvature was met once: the first step is any small one.
            tentative = ratio.isinf() & by_curvature.isinf()
            size = torch.where(tentative, 10 * last, size)
            ratio = torch.where(tentative, ratio, size / last)
        else:
            length = self.first * (1 + task_dot(v, v).sqrt())
            size = torch.where(norm > 0, length / norm.where(norm > 0, 1), 1)
            ratio = torch.full_like(size, torch.inf)
            tentative = torch.ones_like(norm, dtype=torch.bool)
        new = {n: p - by_task(size, p) * gradients[n] for n, p in params.items()}
        sizes = {"step_size": size, "ratio": ratio}
        return new, {"sizes": sizes, "params": v, "gradients": g, TENTATIVE: {"": tentative}}


@dataclass(frozen=True, eq=False)
class Scaled:
    """Steps of another rule, all as many times as long.

    Attributes:
        rule: update rule.
        factor: of the length of its steps, a scalar tensor.
    """

    rule: UpdateRule
    factor: Tensor

    def init(self, params: TaskParams, outer: Params) -> RuleState:
        """The state of the other rule."""
        return self.rule.init(params, outer)

    def update(
        self, gradients: TaskParams, state: RuleState, params: TaskParams, step: int
    ) -> tuple[TaskParams, RuleState]:
        """One step."""
        new, state = self.rule.update(gradients, state, params, step)
        return {n: p + self.factor.to(p) * (new[n] - p) for n, p in params.items()}, state


def by_task(scale: Tensor, like: Tensor) -> Tensor:
    """One number a task, ``[T]``, in a shape that broadcasts against ``[T, ...]``."""
    return scale.reshape([-1] + [1] * (like.ndim - 1))


def _difference(a: TaskParams, b: TaskParams) -> TaskParams:
    return {name: x - b[name] for name, x in a.items()}


@checked
@dataclass(frozen=True)
class LearnedSGD:
    """Gradient descent ``v ← v - α_v g`` with step sizes α_v learned as outer variables.

    The outer variables of the group ``step_sizes`` are broadcast against the parameters of the same
    name.

    Attributes:
        per_step: each inner step has its own step sizes (a leading axis); steps beyond the last use
            the last.

    Source: Li et al., "Meta-SGD" (arXiv 1707.09835), one step size per entry; Antoniou et al.,
    "How to Train Your MAML" (MAML++, arXiv 1810.09502), one per tensor and step.
    """

    per_step: bool = False

    def init(self, params: TaskParams, outer: Params) -> RuleState:
        """Selects the step sizes from the outer variables.

        Raises:
            ConfigurationError: if a parameter has none, or their shape is not one number, or one
                for each entry, for each step if ``per_step``.
        """
        sizes = OuterVariables.grouped(outer).step_sizes
        missing = [name for name in params if name not in sizes]
        if missing:
            wanted = OuterVariables.flat_name("step_sizes", missing[0])
            raise ConfigurationError(
                f"inner parameter '{missing[0]}' has no learned step size: the problem must have "
                f"an outer variable '{wanted}' (Initialization: set step_size)"
            )
        for name, p in params.items():
            _check_shape(name, sizes[name], p, per_step=self.per_step)
        return {"step_size": {name: sizes[name] for name in params}}

    def update(
        self, gradients: TaskParams, state: RuleState, params: TaskParams, step: int
    ) -> tuple[TaskParams, RuleState]:
        """One gradient step."""
        sizes = state["step_size"]
        if self.per_step:
            sizes = {name: size[min(step, len(size) - 1)] for name, size in sizes.items()}
        return {name: p - sizes[name] * gradients[name] for name, p in params.items()}, state


def _check_shape(name: str, size: Tensor, p: Tensor, *, per_step: bool) -> None:
    each = tuple(size.shape[1:] if per_step else size.shape)
    if (per_step and not size.ndim) or each not in ((), tuple(p.shape[1:])):
        steps = "one row for each inner step (own_steps)" if per_step else "no axis of inner steps"
        raise ConfigurationError(
            f"step sizes of '{name}' have shape {tuple(size.shape)} where parameters have "
            f"{tuple(p.shape[1:])}: with per_step={per_step} they need {steps}, and then one "
            "number, or one for each entry (entry_steps)"
        )


RULES = (SGD, Momentum, Adam, AdGD, LearnedSGD)
"""All update rules, for the command line and recipes."""
