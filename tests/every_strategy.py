"""One of each kind of strategy, by name, for the contract tests."""

from __future__ import annotations

from fewshot_blo import hypergrad
from fewshot_blo.hypergrad import (
    BOME,
    AmIGO,
    FiniteDifference,
    Implicit,
    MoreauEnvelope,
    Penalty,
    Reptile,
    StocBiO,
    Strategy,
    Unroll,
    ValueFunction,
)
from fewshot_blo.hypergrad.linear_solve import MINRES, ConjugateGradient, Neumann, Nystrom, OneStep
from fewshot_blo.kernel import SGD, Adam, InnerSteps, Momentum

# With its small eps, each step of Adam multiplies rounding errors by up to 1e6 when differentiated.
STRATEGIES: dict[str, Strategy] = {
    "unroll": Unroll(InnerSteps(2, SGD(0.1))),
    "unroll, no step": Unroll(InnerSteps(0)),
    "unroll first order": Unroll(InnerSteps(2, SGD(0.1)), first_order=True),
    "unroll truncated": Unroll(InnerSteps(3, Momentum(0.1)), truncate=2),
    "unroll recomputed": Unroll(InnerSteps(3, Adam(1e-2, eps=1e-3)), recompute=True),
    "unroll, loss of all steps": Unroll(InnerSteps(3, SGD(0.1)), multi_step=10),
    "implicit by cg": Implicit(InnerSteps(3, SGD(0.1)), ConjugateGradient(3, damping=1.0)),
    "implicit by Neumann": Implicit(InnerSteps(3, SGD(0.1)), Neumann(3, 0.1)),
    "implicit in one step": Implicit(InnerSteps(3, SGD(0.1)), OneStep(0.1)),
    "penalty": Penalty(InnerSteps(2, SGD(1e-2)), rho=1.0),
    "value function": ValueFunction(InnerSteps(2, SGD(0.1)), 3, lam=2.0),
    "value function, continued": ValueFunction(
        InnerSteps(2, Momentum(0.1)), 1, lam=0.5, continued=True
    ),
    "bome": BOME(InnerSteps(2, SGD(0.1)), 2),
    "amigo": AmIGO(InnerSteps(2, SGD(0.1)), 2, 0.1),
    "stocbio": StocBiO(InnerSteps(2, SGD(0.1)), 2, 0.1),
    "implicit by MINRES": Implicit(InnerSteps(3, SGD(0.1)), MINRES(3)),
    "implicit by Nyström": Implicit(InnerSteps(3, SGD(0.1)), Nystrom(4, 0.5)),
    # Rounding is divided by the length: over 1e-5 it would be more than the loop may differ by, and
    # over 0.01 it is, by the order of sums of some processors.
    "finite differences": FiniteDifference(
        InnerSteps(3, SGD(0.1)), ConjugateGradient(3, damping=1.0), length=0.1
    ),
    "finite differences in one step": FiniteDifference(
        InnerSteps(1, SGD(0.1)), OneStep(0.1), length=0.1
    ),
    "moreau envelope": MoreauEnvelope(InnerSteps(1, SGD(0.1)), 0.1, gamma=0.5, weight=2.0),
    "reptile": Reptile(InnerSteps(2, SGD(0.1))),
}
# A strategy of the package that has no line above is here with its defaults.
_KNOWN = {type(strategy) for strategy in STRATEGIES.values()}
STRATEGIES |= {kind.__name__: kind() for kind in hypergrad.STRATEGIES if kind not in _KNOWN}
