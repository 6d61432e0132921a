"""From the settings of a run to its strategy and inner steps."""

from __future__ import annotations

from fewshot_blo.experiments.settings import Config, RuleSettings, StrategySettings
from fewshot_blo.hypergrad import (
    BOME,
    Implicit,
    Penalty,
    Reptile,
    Strategy,
    Unroll,
    ValueFunction,
)
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, LinearSolver, Neumann, OneStep
from fewshot_blo.kernel import SGD, Adam, InnerSteps, LearnedSGD, Momentum, UpdateRule


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


def build_adaptation(config: Config) -> InnerSteps:
    """The inner steps at test time."""
    return InnerSteps(config.adaptation.steps, build_rule(config, config.adaptation))


def build_strategy(config: Config) -> Strategy:
    """The hypergradient strategy."""
    settings, steps, rule = config.strategy, config.inner.steps, build_rule(config, config.inner)
    lam = {} if settings.lam is None else {"lam": settings.lam}
    if settings.name == "unroll":
        return Unroll(
            InnerSteps(steps, rule),
            settings.first_order,
            None if settings.truncate < 0 else settings.truncate,
            settings.recompute,
            settings.multi_step,
            settings.first_order_steps,
        )
    if settings.name == "implicit":
        return Implicit(InnerSteps(steps, rule), _solver(settings, config.inner.step_size))
    if settings.name == "value_function":
        return ValueFunction(
            InnerSteps(steps, rule),
            settings.value_steps,
            lam_growth=settings.lam_growth,
            lam_max=settings.lam_max,
            continued=settings.continued,
            **lam,
        )
    if settings.name == "bome":
        return BOME(InnerSteps(steps, rule), settings.value_steps, settings.eta)
    if settings.name == "reptile":
        return Reptile(InnerSteps(steps, rule), settings.query_weight)
    return Penalty(
        InnerSteps(steps, rule),
        rho=settings.rho,
        epsilon=settings.epsilon,
        multiplier=settings.multiplier,
        rho_growth=settings.rho_growth,
        lam_decay=settings.lam_decay,
        epsilon_decay=settings.epsilon_decay,
        **lam,
    )


def _solver(settings: StrategySettings, inner_step_size: float) -> LinearSolver:
    step_size = settings.solver_step_size or inner_step_size
    if settings.solver == "cg":
        return ConjugateGradient(settings.solver_steps, settings.damping)
    if settings.solver == "neumann":
        return Neumann(settings.solver_steps, step_size, settings.damping)
    return OneStep(step_size)
