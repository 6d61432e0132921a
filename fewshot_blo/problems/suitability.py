"""Which problems can be trained by which strategies, told before the first step."""

from __future__ import annotations

from typing import Literal

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder


def check_suits(
    problem: FewShotProblem, strategy: Strategy, start: Literal["cold", "warm"]
) -> None:
    """Raises where training would do nothing, or not what it says.

    Raises:
        ConfigurationError: if there is nothing to learn, a warm start leaves the initialization in
            no loss, or a strategy needs a minimiser where a head has a formula.
    """
    if not problem.outer:
        raise ConfigurationError(
            "no parameter of the encoder requires a gradient and the head, its start and prox "
            "have none that is learned: there is nothing to learn"
        )
    if start == "warm" and isinstance(problem, Initialization) and problem.prox == 0:
        raise ConfigurationError(
            "a warm start leaves the initialization out: with prox 0 it is then in no loss; "
            "use a cold start, or prox above 0"
        )
    if (
        isinstance(problem, SharedEncoder)
        and problem.head.starts == ("closed_form",)
        and strategy.needs_minimiser
    ):
        raise ConfigurationError(
            f"{type(strategy).__name__} takes the parameters of a {type(problem.head).__name__} "
            "for the minimisers of its loss, and they are a formula of the support set: use "
            "Unroll with 0 steps"
        )
