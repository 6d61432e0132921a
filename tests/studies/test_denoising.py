"""Data denoising by importance learning."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.solving.driver import solve
from fewshot_blo.studies import Denoising
from fewshot_blo.studies.images.classifiers import accuracy, make_network
from fewshot_blo.studies.images.denoising import AUC, F1, KEPT, TEST, WRONG
from fewshot_blo.studies.images.digits import Digits, Labelled, batches


def study(folder: Path, **settings: object) -> Denoising:
    return Denoising(**{"root": str(folder), "train": 300, "validation": 100, **settings})  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        Penalty(InnerSteps(20, Adam(1e-2)), rho=1.0, epsilon=0.0),
        Implicit(InnerSteps(10, Adam(1e-2)), ConjugateGradient(5)),
        Unroll(InnerSteps(10, SGD(0.05))),
    ],
    ids=["penalty", "implicit", "unroll"],
)
def test_wrong_labels_lose_their_weight(strategy: Strategy, digits_root: Path) -> None:
    denoising = study(digits_root)
    optimizer = lambda leaves: torch.optim.Adam(leaves, 0.3)  # noqa: E731
    solution = solve(denoising.problem(), strategy, optimizer, steps=50, progress=False)
    found = denoising.measure(solution.outer, solution.inner)
    assert found[""][AUC] > 0.9  # Of chance: 0.5.
    assert found[" + retrain"][WRONG] < 20


def test_losses_of_hyper_cleaning_are_those_of_the_definition(digits_root: Path) -> None:
    """``mean_i σ(u_i) CE_i`` of one hidden layer of sigmoid units, in NumPy."""
    cleaning = study(digits_root, network="sigmoid", hidden=7, normalised=False, l2=0.0)
    problem = cleaning.problem()
    rng = np.random.default_rng(0)
    shapes = [p.shape for p in problem.inner.values()]
    v = [rng.normal(size=shape) for shape in shapes]
    u = rng.normal(size=300)
    x = cleaning._digits.parts[0].x.flatten(1).double().numpy()
    logits = 1 / (1 + np.exp(-(x @ v[0].T + v[1]))) @ v[2].T + v[3]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(300), cleaning.labels.numpy()]
    expected = (losses / (1 + np.exp(-u))).mean()
    inner = {n: torch.tensor(p, dtype=torch.float32) for n, p in zip(problem.inner, v, strict=True)}
    outer = {"logit": torch.tensor(u, dtype=torch.float32)}
    found = problem.inner_loss(inner, outer, torch.arange(300))  # type: ignore[call-arg]
    assert float(found) == pytest.approx(expected, rel=1e-5)


class Double(Denoising):
    """On few random images in float64."""

    @property
    def _digits(self) -> Digits:
        generator = torch.Generator().manual_seed(0)

        def part(count: int) -> Labelled:
            x = torch.rand(count, 1, 28, 28, generator=generator, dtype=torch.float64)
            return Labelled(x, torch.arange(count) % 10)

        return Digits([part(self.train), part(self.validation)], part(10))

    @property
    def _model(self) -> nn.Module:
        return make_network(self.network, self.seed, hidden=self.hidden).double()


def after_descent(cleaning: Double, u: Any, steps: int, step_size: float) -> float:
    """F after gradient descent on ``mean_i σ(u_i) CE_i``, with back-propagation by hand."""
    images, clean = cleaning._digits.parts
    x, clean_x, clean_y = images.x.flatten(1).numpy(), clean.x.flatten(1).numpy(), clean.y.numpy()
    y = np.eye(10)[cleaning.labels.numpy()]
    a, b, c, d = (p.detach().numpy().copy() for p in cleaning._model.parameters())
    for _ in range(steps):
        hidden = 1 / (1 + np.exp(-(x @ a.T + b)))
        chances = np.exp(hidden @ c.T + d)
        chances /= chances.sum(1, keepdims=True)
        on_logits = (chances - y) / (1 + np.exp(-u))[:, None] / len(y)
        on_units = on_logits @ c * hidden * (1 - hidden)
        c, d = c - step_size * on_logits.T @ hidden, d - step_size * on_logits.sum(0)
        a, b = a - step_size * on_units.T @ x, b - step_size * on_units.sum(0)
    logits = 1 / (1 + np.exp(-(clean_x @ a.T + b))) @ c.T + d
    right = logits[np.arange(len(logits)), clean_y]
    return float((np.log(np.exp(logits).sum(1)) - right).mean())


def test_hypergradient_of_hyper_cleaning_is_that_of_finite_differences() -> None:
    cleaning = Double(train=6, validation=8, network="sigmoid", hidden=4, normalised=False, l2=0.0)
    u = np.random.default_rng(0).normal(size=6)
    problem = cleaning.problem()
    problem = replace(problem, outer={"logit": torch.tensor(u)})
    strategy = Unroll(InnerSteps(4, SGD(0.5)), recompute=False)
    gradient = strategy.hypergradient(problem.at(0), strategy.init()).gradient["logit"]
    for entry, unit in enumerate(np.eye(6) * 1e-5):
        ahead, behind = (after_descent(cleaning, u + sign * unit, 4, 0.5) for sign in (1, -1))
        assert float(gradient[entry]) == pytest.approx((ahead - behind) / 2e-5, rel=1e-6, abs=1e-11)


def test_f1_score_of_kept_images(digits_root: Path) -> None:
    """Precision and recall counted by hand; right labels are the positive ones."""
    cleaning = study(digits_root)
    weights = torch.randn(300, generator=torch.Generator().manual_seed(0))
    kept, right = weights > 0, ~cleaning.wrong
    both = int((kept & right).sum())
    precision, recall = both / int(kept.sum()), both / int(right.sum())
    found = cleaning.measure({"logit": weights}, cleaning.problem().inner)[""][F1]
    assert found == pytest.approx(100 * 2 * precision * recall / (precision + recall))
    assert cleaning._f1(right) == 100
    assert cleaning._f1(torch.zeros(300).bool()) == 0


def test_labels_are_wrong_as_often_as_told(digits_root: Path) -> None:
    denoising = study(digits_root, noise=0.25)
    right = denoising._digits.parts[0].y
    assert torch.equal(denoising.labels != right, denoising.wrong)
    assert int(denoising.wrong.sum()) == 75
    other = study(digits_root, noise=0.25, seed=1)
    assert not torch.equal(other.labels, denoising.labels)


@pytest.mark.slow
def test_baselines_stand_in_order(digits_root: Path) -> None:
    rows = study(digits_root).baselines()
    assert rows["oracle: clean labels alone"][WRONG] == 0
    assert rows["clean images alone"][KEPT] == 0
    assert rows["all labels"][WRONG] == 50
    assert rows["oracle: clean labels alone"][TEST] > rows["all labels"][TEST]
    assert rows["labels that a model of the clean images finds"][AUC] > 0.9


@pytest.mark.slow
def test_mini_batches_of_a_network_that_is_not_convex(digits_root: Path) -> None:
    denoising = study(digits_root, network="convolutional", batch=20, updates=3)
    strategy = Penalty(InnerSteps(2, Adam(1e-3)))
    optimizer = lambda leaves: torch.optim.Adam(leaves, 0.3)  # noqa: E731
    solution = solve(denoising.problem(), strategy, optimizer, steps=2, progress=False)
    moved = (solution.outer["logit"] != 0).sum()
    assert 20 <= moved <= 40  # Only images of the two mini-batches have a gradient.
    assert all(
        math.isfinite(x) for x in denoising.measure(*(solution.outer, solution.inner))[""].values()
    )


def test_pretraining_is_where_the_inner_problem_starts(digits_root: Path) -> None:
    plain = study(digits_root, network="perceptron", batch=20)
    pretrained = study(digits_root, network="perceptron", batch=20, pretraining=30)
    accuracies = [
        accuracy(s._model, s.problem().inner, *s._digits.test) for s in (plain, pretrained)
    ]
    assert accuracies[0] < 40
    assert accuracies[1] > 80
    again = study(digits_root, network="perceptron", batch=20, pretraining=30).problem().inner
    for name, value in pretrained.problem().inner.items():
        assert torch.equal(value, again[name])


def test_ranks_tell_wrong_labels(digits_root: Path) -> None:
    denoising = study(digits_root)
    assert denoising._auc((~denoising.wrong).float()) == 1
    assert denoising._auc(denoising.wrong.float()) == 0
    assert denoising._auc(torch.ones(300)) == 0.5
    scores = torch.randn(300)
    pairs = scores[~denoising.wrong][:, None] > scores[denoising.wrong]
    assert denoising._auc(scores) == pytest.approx(float(pairs.double().mean()))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"noise": 0.0}, "noise is 0.0"),
        ({"train": 700}, "parts have 700, 100 images.* at most 600"),
        ({"root": ""}, "set root"),
    ],
)
def test_settings_that_make_no_sense(
    settings: dict[str, object], match: str, digits_root: Path
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        study(digits_root, **settings).problem()


def test_mini_batches_follow_seed_and_step() -> None:
    rows = [batches(1000, 20, seed)(step) for seed in (0, 1) for step in (0, 1)]
    assert all(len(part.unique()) == 20 for part in rows)
    assert len({tuple(part.tolist()) for part in rows}) == 4
    assert torch.equal(rows[3], batches(1000, 20, 1)(1))
    assert torch.equal(batches(5, 0, 0)(3), torch.arange(5))
