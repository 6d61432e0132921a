"""What studies record on the way tells how good u is, not how well v was fitted to F."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.studies import RETRAINED, Denoising, Distillation, Poisoning, Study
from fewshot_blo.studies.images.distillation import TEST
from fewshot_blo.studies.images.poisoning import OUTER_LOSS


def followed(study: Study) -> tuple[Params, Mapping[str, Tensor], Mapping[str, float]]:
    """Records at the initial u, which do not depend on v."""
    problem, observe = study.problem(), study.observe()
    assert observe is not None
    u = {name: p.detach() for name, p in problem.outer.items()}
    found = observe(u, problem.inner)
    other = {name: torch.randn_like(p) for name, p in problem.inner.items()}
    assert observe(u, other) == found
    return u, problem.inner, found


def test_poison_by_the_outer_loss_after_retraining(digits_root: Path) -> None:
    study = Poisoning(str(digits_root), train=100, validation=100)
    u, v, found = followed(study)
    assert found == {"outer loss, retrained": study.measure(u, v)[RETRAINED][OUTER_LOSS]}


def test_distilled_images_by_networks_trained_on_them(digits_root: Path) -> None:
    study = Distillation(
        str(digits_root), train=300, validation=200, hidden=8, retrainings=1, retraining_steps=40
    )
    test = study._digits.test
    study.__dict__["_digits"] = replace(study._digits, parts=[study._digits.parts[0], test])
    u, v, found = followed(study)
    right = study.measure(u, v)[RETRAINED][TEST]
    assert found == {"validation error, retrained, %": pytest.approx(100 - right)}


def test_weights_by_how_they_rank_labels(digits_root: Path) -> None:
    study = Denoising(str(digits_root), train=100, validation=100)
    observe = study.observe()
    assert observe is not None
    right = (~study.wrong).float()
    for score, expected in ((right, 0.0), (-right, 1.0), (torch.zeros_like(right), 0.5)):
        assert observe({"logit": score}, {}) == {"1 - AUC of the weights": pytest.approx(expected)}
