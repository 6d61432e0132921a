"""From the settings of a run to its strategy and inner steps."""

from __future__ import annotations

from dataclasses import replace

from fewshot_blo.evaluation.evaluate import Adaptation
from fewshot_blo.experiments.settings import Config, RuleSettings, StrategySettings
from fewshot_blo.hypergrad import (
    BOME,
    Implicit,
    Penalty,
    Phases,
    Reptile,
    Strategy,
    Unroll,
    ValueFunction,
)
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, LinearSolver, Neumann, OneStep
from fewshot_blo.kernel import SGD, Adam, LearnedSGD, Momentum, UpdateRule


def build_rule(config: Config, settings: RuleSettings) -> UpdateRule:
    """The update rule of the inner steps in training or at test time."""
    if settings.rule == "learned":
        return LearnedSGD(per_step=config.problem.step_sizes == "step")
    rules: dict[str, type[SGD | Momentum | Adam]] = {
        "sgd": SGD,
        "momentum": Momentum,
        "adam": Adam,
    }
    return rules[settings.rule](settings.step_size)


def build_adaptation(config: Config) -> Adaptation:
    """The inner steps at test time."""
    return Adaptation(config.adaptation.steps, build_rule(config, config.adaptation))


def build_strategy(config: Config) -> Strategy | Phases:
    """The hypergradient strategy, or several for phases of training."""
    settings, steps, rule = config.strategy, config.inner.steps, build_rule(config, config.inner)
    lam = {} if settings.lam is None else {"lam": settings.lam}
    if settings.name == "unroll":
        return _unroll_phases(settings, steps, rule)
    if settings.name == "implicit":
        return Implicit(steps, rule, _solver(settings, config.inner.step_size))
    if settings.name == "value_function":
        return ValueFunction(
            steps,
            settings.value_steps,
            rule,
            lam_growth=settings.lam_growth,
            lam_max=settings.lam_max,
            continued=settings.continued,
            **lam,
        )
    if settings.name == "bome":
        return BOME(steps, settings.value_steps, rule, settings.eta)
    if settings.name == "reptile":
        return Reptile(steps, rule, settings.query_weight)
    return Penalty(
        steps,
        rule,
        rho=settings.rho,
        epsilon=settings.epsilon,
        multiplier=settings.multiplier,
        rho_growth=settings.rho_growth,
        lam_decay=settings.lam_decay,
        epsilon_decay=settings.epsilon_decay,
        **lam,
    )


def _unroll_phases(settings: StrategySettings, steps: int, rule: UpdateRule) -> Strategy | Phases:
    """First order and the loss of several steps end at outer steps of their own."""
    truncate = None if settings.truncate < 0 else settings.truncate
    last = Unroll(steps, rule, settings.first_order, truncate, settings.recompute)
    starts = sorted({0, settings.first_order_steps, settings.multi_step})
    phases: list[tuple[int, Strategy]] = []
    for start in starts:
        phase = last
        if start < settings.first_order_steps:
            phase = replace(phase, first_order=True, truncate=None)
        if start < settings.multi_step:
            phase = replace(phase, multi_step=settings.multi_step)
        phases.append((start, phase))
    return last if len(phases) == 1 else Phases(tuple(phases))


def _solver(settings: StrategySettings, inner_step_size: float) -> LinearSolver:
    step_size = settings.solver_step_size or inner_step_size
    if settings.solver == "cg":
        return ConjugateGradient(settings.solver_steps, settings.damping)
    if settings.solver == "neumann":
        return Neumann(settings.solver_steps, step_size, settings.damping)
    return OneStep(step_size)
