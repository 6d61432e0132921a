"""Training-data poisoning, of digits and of features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Implicit, Penalty, Strategy
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.hypergrad.strategy import outer_step
from fewshot_blo.kernel import Adam, InnerSteps, Momentum, adapt
from fewshot_blo.solving.driver import solve
from fewshot_blo.studies import CleanLabelPoisoning, Poisoning, Study, TargetedPoisoning
from fewshot_blo.studies.images.digits import Digits, Labelled
from fewshot_blo.studies.images.poisoning import OUTER_LOSS, TEST
from fewshot_blo.studies.images.poisoning_features import CHANGE, DISTANCE, LOSS, MISTAKEN

TAKEN = "8 taken for 3 %"
OTHER_DRAWS = "10 draws of wrong labels, their mean"
UNCHANGED = "wrong labels, images unchanged"


def small(folder: Path, **settings: Any) -> Poisoning:
    return Poisoning(**{"root": str(folder), "train": 100, "validation": 100, **settings})


def attack(study: Study, strategy: Strategy, steps: int, rate: float = 0.1) -> Any:
    optimizer = partial(torch.optim.Adam, lr=rate)
    return solve(
        study.problem(),
        strategy,
        optimizer,
        steps=steps,
        constraints=study.constraints(),
        progress=False,
    )


def in_double(study: Poisoning) -> Poisoning:
    """The same study with its data and model in float64."""
    digits = study._digits
    parts = [Labelled(x.double(), y) for x, y in digits.parts]
    study.__dict__["_digits"] = Digits(parts, Labelled(digits.test.x.double(), digits.test.y))
    study._model.double()
    return study


@pytest.mark.parametrize("kind", [Poisoning, TargetedPoisoning])
def test_implicit_differentiation_is_exact(kind: type[Poisoning], digits_root: Path) -> None:
    settings: Any = {"train": 20, "validation": 20, "share": 0.1, "l2": 1.0}
    study = in_double(kind(str(digits_root), **settings))
    rule = Momentum(0.03)
    strategy = Implicit(InnerSteps(400, rule), ConjugateGradient(100))
    problem = study.problem()
    images = problem.outer["images"]
    gradient = outer_step(strategy, problem.at(0), strategy.init())[0].gradient["images"]

    direction = torch.randn_like(images)
    losses = []
    for distance in (1e-4, -2e-4):  # From there to the same distance on the other side.
        with torch.no_grad():
            images.add_(direction, alpha=distance)
        v = adapt(problem.at(0).inner_loss, problem.at(0).inner_init, InnerSteps(400, rule))
        losses.append(float(problem.at(0).outer_loss(v)))
    slope = (losses[0] - losses[1]) / 2e-4
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


@pytest.mark.parametrize(
    "strategy",
    [
        Penalty(InnerSteps(10, Momentum(1e-3)), rho=1.0, lam=10.0, epsilon=0.0, multiplier=0.0),
        Implicit(InnerSteps(10, Adam(1e-2)), ConjugateGradient(10)),
    ],
    ids=["penalty", "implicit"],
)
def test_poison_outdoes_wrong_labels(strategy: Strategy, digits_root: Path) -> None:
    study = small(digits_root)
    solution = attack(study, strategy, 25)
    found = study.measure(solution.outer, solution.inner)
    assert list(found) == ["", " + retrain"]
    unchanged = study._after_retraining(study.poison)
    assert found[" + retrain"][OUTER_LOSS] < 1.5 * unchanged[OUTER_LOSS] < 0
    assert solution.outer["images"].min() == 0
    assert solution.outer["images"].max() == 1


def test_baselines_of_wrong_labels(digits_root: Path) -> None:
    baselines = small(digits_root, share=0.3).baselines()
    assert baselines[UNCHANGED][OUTER_LOSS] < baselines["no poison"][OUTER_LOSS]
    ratio = baselines[OTHER_DRAWS][OUTER_LOSS] / baselines[UNCHANGED][OUTER_LOSS]
    assert 0.5 < ratio < 2


@pytest.mark.slow
def test_a_targeted_attack_hits_its_target(digits_root: Path, tmp_path: Path) -> None:
    study = TargetedPoisoning(str(digits_root), train=100, validation=200)
    solution = attack(study, Implicit(InnerSteps(10, Adam(1e-2)), ConjugateGradient(10)), 50)
    found = study.measure(solution.outer, solution.inner)[" + retrain"]
    baselines = study.baselines()
    assert set(baselines) == {"no poison", UNCHANGED}
    assert found[TAKEN] > baselines[UNCHANGED][TAKEN] + 30
    assert found[TEST] > 60  # Most of the nine other digits are still told apart.
    study.draw({"row": solution.outer}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_labels_of_poison(digits_root: Path) -> None:
    untargeted = small(digits_root, share=0.2)
    right = untargeted._digits.parts[2].y[:20]
    assert (untargeted.poison.y != right).all()
    assert len(set(untargeted.poison.y.tolist())) > 5
    targeted = TargetedPoisoning(str(digits_root), train=100, validation=100, share=0.07)
    x, y = targeted._digits.parts[2]
    rows = [int((x == image).flatten(1).all(1).nonzero()) for image in targeted.poison.x]
    assert y[rows].tolist() == [8, 8, 8, 3, 3, 3, 3]
    assert targeted.poison.y.tolist() == [3, 3, 3, 8, 8, 8, 8]


@pytest.mark.slow
def test_clean_labels_mislead(clean_label: CleanLabelPoisoning, tmp_path: Path) -> None:
    targets, others = clean_label._divided_test
    assert targets.sides.tolist() == [-1, -1, -1, 1, 1, 1]
    assert len(others.sides) == 14
    assert torch.equal(clean_label.poison.sides, -targets.sides)
    before = clean_label.baselines()["images unchanged"]
    strategy = Implicit(InnerSteps(20, Adam(0.05)), ConjugateGradient(10))
    solution = attack(clean_label, strategy, 40, 0.02)
    found = clean_label.measure(solution.outer, solution.inner)[" + retrain"]
    assert before[CHANGE] == 0
    assert 0 < found[CHANGE] < 0.3
    assert found[DISTANCE] < before[DISTANCE]
    assert found[LOSS] < before[LOSS]
    assert found[MISTAKEN] >= before[MISTAKEN]
    clean_label.draw({"row": solution.outer}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_targets_do_not_share_their_poison(clean_label: CleanLabelPoisoning) -> None:
    problem = clean_label.problem()
    strategy = Implicit(InnerSteps(20, Adam(0.05)), ConjugateGradient(10))
    v = {"weight": torch.randn(6, 6, requires_grad=True)}
    inner_loss: Callable[..., Tensor] = problem.inner_loss
    loss = inner_loss(v, problem.outer)
    (g_v,) = torch.autograd.grad(loss, list(v.values()), create_graph=True)
    (mixed,) = torch.autograd.grad(g_v[2].sum(), [problem.outer["images"]])
    assert [bool(of_one.any()) for of_one in mixed] == [False, False, True, False, False, False]
    step, _ = outer_step(strategy, problem.at(0), strategy.init())
    assert step.gradient["images"].flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        (Poisoning, {"share": 0.0}, "share is 0.0, which gives 0 poison images"),
        (Poisoning, {"share": 2.0}, "share is 2.0"),
        (TargetedPoisoning, {"mistaken": 8}, "victim is 8 and mistaken is 8"),
        (TargetedPoisoning, {"victim": 10}, "victim is 10"),
        (CleanLabelPoisoning, {"targets": 3}, "targets is 3"),
    ],
)
def test_settings_that_make_no_sense(
    kind: type[Study], settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        kind(**settings)


def test_what_the_images_do_not_give(clean_label: CleanLabelPoisoning) -> None:
    def changed(**settings: Any) -> CleanLabelPoisoning:
        return CleanLabelPoisoning("x", 0, "own_networks:net", size=32, **settings)

    with pytest.raises(ConfigurationError, match="train is 40: there are 40 images"):
        changed(train=40).problem()
    with pytest.raises(ConfigurationError, match="targets is 30: too few"):
        changed(train=30, targets=30).problem()
    with pytest.raises(ConfigurationError, match="fox and wolf"):
        changed(classes=("fox", "wolf")).problem()
    with pytest.raises(ConfigurationError, match="set root"):
        CleanLabelPoisoning().problem()
