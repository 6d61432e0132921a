"""Every strategy runs on every study."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fewshot_blo.hypergrad import (
    BOME,
    SOBA,
    AmIGO,
    FiniteDifference,
    Implicit,
    MoreauEnvelope,
    Penalty,
    StocBiO,
    Strategy,
    Unroll,
    ValueFunction,
)
from fewshot_blo.hypergrad.linear_solve import MINRES, ConjugateGradient, Neumann, Nystrom, OneStep
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.driver import solve
from fewshot_blo.studies import (
    STUDIES,
    AntiDistillation,
    Cleaning,
    CleanLabelPoisoning,
    Denoising,
    Distillation,
    LearnedAugmentation,
    LogisticRegularisation,
    MetaWeightNet,
    MinNorm,
    OnePoint,
    Poisoning,
    SampledQuadratics,
    SourceReweighting,
    Spurious,
    Study,
    Synthetic,
    TargetedPoisoning,
    WeightDecay,
)

STEPS = SGD(0.01)
STRATEGIES: dict[str, Strategy] = {
    "penalty": Penalty(InnerSteps(3, STEPS), rho=1.0),
    "value function": ValueFunction(InnerSteps(3, STEPS), 3, lam=1.0),
    "bome": BOME(InnerSteps(3, STEPS), 3),
    "unroll": Unroll(InnerSteps(3, STEPS)),
    "unroll, truncated": Unroll(InnerSteps(3, STEPS), truncate=1),
    "implicit, conjugate gradients": Implicit(InnerSteps(3, STEPS), ConjugateGradient(2)),
    "implicit, Neumann": Implicit(InnerSteps(3, STEPS), Neumann(3, 0.01)),
    "implicit, one step": Implicit(InnerSteps(3, STEPS), OneStep(0.01)),
    "implicit, MINRES": Implicit(InnerSteps(3, STEPS), MINRES(2)),
    "implicit, Nyström": Implicit(InnerSteps(3, STEPS), Nystrom(2, 1.0)),
    "finite differences": FiniteDifference(InnerSteps(3, STEPS), ConjugateGradient(2)),
    "moreau envelope": MoreauEnvelope(InnerSteps(1, STEPS), 0.01),
    "soba": SOBA(InnerSteps(1, STEPS), 0.01),
    "amigo": AmIGO(InnerSteps(3, STEPS), 3, 0.01),
    "stocbio": StocBiO(InnerSteps(3, STEPS), 3, 0.01),
}
DIGITS: dict[type[Study], dict[str, Any]] = {
    Cleaning: {"train": 60, "validation": 40, "batch": 16},
    Denoising: {"train": 60, "validation": 40},
    Distillation: {"train": 60, "validation": 40, "batch": 20, "hidden": 8},
    LearnedAugmentation: {"train": 40, "validation": 40, "batch": 10, "hidden": 8},
    MetaWeightNet: {"most": 20, "imbalance": 5.0, "balanced": 3, "batch": 20, "updates": 5},
    Poisoning: {"train": 60, "validation": 40},
    SourceReweighting: {"sources": 4, "images": 20, "validation": 40},
    TargetedPoisoning: {"train": 60, "validation": 40},
    WeightDecay: {"train": 60, "validation": 40, "stopping": 40},
}
WITHOUT_FILES: tuple[Study, ...] = (
    *(Synthetic(example=example) for example in (1, 2, 3, 4)),
    MinNorm(),
    OnePoint(),
    AntiDistillation(),
    Spurious(),
    SampledQuadratics(samples=64, inner=8, outer=3, batch=16),
    LogisticRegularisation(train=64, validation=48, features=4, useful=2, batch=16, decay=0.1),
)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=list(STRATEGIES))


def moves(study: Study, strategy: Strategy) -> None:
    """Two outer steps, warm, move the outer variables, within their constraints."""
    before = {name: p.detach().clone() for name, p in study.problem().outer.items()}
    optimizer: Callable[..., Any] = partial(torch.optim.Adam, lr=1e-2)
    constraints = study.constraints()
    found = solve(
        study.problem(), strategy, optimizer, steps=2, constraints=constraints, progress=False
    )
    assert found.step == 2
    assert any(not torch.equal(found.outer[name], p) for name, p in before.items())
    for name, p in found.outer.items():
        assert p.isfinite().all()
        if name in constraints:
            torch.testing.assert_close(constraints[name].project(p), p)


@pytest.mark.sampled(4)
@every_strategy
@pytest.mark.parametrize("kind", DIGITS, ids=lambda kind: kind.__name__)
def test_problems_of_digits(kind: Any, strategy: Strategy, digits_root: Path) -> None:
    moves(kind(root=str(digits_root), **DIGITS[kind]), strategy)


@every_strategy
@pytest.mark.parametrize("study", WITHOUT_FILES, ids=repr)
def test_problems_without_files(study: Study, strategy: Strategy) -> None:
    moves(study, strategy)


@every_strategy
def test_a_head_on_a_pretrained_backbone(
    clean_label: CleanLabelPoisoning, strategy: Strategy
) -> None:
    moves(clean_label, strategy)


def test_no_study_is_left_out() -> None:
    tested = {CleanLabelPoisoning, *DIGITS, *(type(study) for study in WITHOUT_FILES)}
    assert set(STUDIES.values()) == tested
