"""One weight decay for every parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Implicit, Strategy, Unroll, ValueFunction
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.solving.driver import solve
from fewshot_blo.studies import WeightDecay
from fewshot_blo.studies.images.digits import Digits, Labelled, read_digits
from fewshot_blo.studies.images.weight_decay import CHOSEN, LOSS, ON_ALL, TEST, decays


class Tiny(WeightDecay):
    """Softmax regression of three features in float64, without files."""

    @cached_property
    def _digits(self) -> Digits:
        generator = torch.Generator().manual_seed(0)

        def part() -> Labelled:
            x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
            return Labelled(x, torch.arange(12) % 3)

        return Digits([part(), part(), part()], part())

    @cached_property
    def _model(self) -> nn.Module:
        layer = nn.Linear(3, 3, bias=False, dtype=torch.float64)
        nn.init.zeros_(layer.weight)
        return layer


def retrained(study: Tiny, u: Tensor) -> Tensor:
    """The minimiser of G by Newton's method."""
    v = torch.zeros(9, dtype=torch.float64)
    inner_loss: Callable[..., Tensor] = study.problem().inner_loss

    def loss(v: Tensor) -> Tensor:
        return inner_loss({"weight": v.view(3, 3)}, {"weight": u})

    for _ in range(8):
        v = v - torch.linalg.solve(hessian(loss, v), jacobian(loss, v))
    assert float(jacobian(loss, v).abs().max()) < 1e-14
    return v.view(3, 3)


@pytest.mark.parametrize(
    "strategy",
    [Implicit(InnerSteps(0, SGD()), ConjugateGradient(9)), Unroll(InnerSteps(300, SGD(0.5)))],
    ids=["implicit", "unroll"],
)
def test_hypergradient_is_that_of_full_retraining(strategy: Strategy) -> None:
    study = Tiny(decay=0.3)
    problem = study.problem()
    u = problem.outer["weight"]
    with torch.no_grad():
        u += torch.linspace(-1, 1, 9, dtype=torch.float64).view(3, 3)
    if isinstance(strategy, Implicit):  # It takes no step: its start is the minimiser.
        problem = replace(problem, inner={"weight": retrained(study, u.detach())})
    found = strategy.hypergradient(problem.at(0), strategy.init()).gradient["weight"]
    outer_loss: Callable[..., Tensor] = problem.outer_loss
    for entry in torch.eye(9, dtype=torch.float64).view(9, 3, 3):
        above, below = (
            outer_loss({"weight": retrained(study, u.detach() + 1e-4 * sign * entry)}, {})
            for sign in (1, -1)
        )
        difference = float(above - below) / 2e-4
        assert float((found * entry).sum()) == pytest.approx(difference, rel=1e-5, abs=1e-9)


def test_decays_by_hand() -> None:
    v = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    u = {"a": torch.tensor([0.0, math.log(3)]), "b": torch.tensor([[-math.inf]])}
    assert float(decays(v, u)) == pytest.approx(0.5 * (1 + 3 * 4))


class Noisy(WeightDecay):
    """The small digits under noise that a classifier of 60 images does not see through."""

    @cached_property
    def _digits(self) -> Digits:
        generator = torch.Generator().manual_seed(0)
        clean = read_digits(self.root, (60, 100, 50), self.seed)

        def noisy(part: Labelled) -> Labelled:
            return Labelled(part.x + 1.5 * torch.randn(part.x.shape, generator=generator), part.y)

        return Digits([noisy(part) for part in clean.parts], noisy(clean.test))


@pytest.mark.slow
def test_learned_decays_beat_the_best_single_one(digits_root: Path) -> None:
    study = Noisy(str(digits_root), train=60, validation=100, stopping=50)
    rows = study.baselines()
    single = rows["one decay"]
    assert single[LOSS] < rows["no decay"][LOSS]
    assert rows["all images, that decay"][TEST] > single[TEST]
    by_images = rows["all images, that decay by images"][CHOSEN]
    assert by_images == pytest.approx(single[CHOSEN] * 60 / 210)
    strategies: list[Strategy] = [
        Implicit(InnerSteps(5, Adam(1e-2)), ConjugateGradient(5)),
        ValueFunction(InnerSteps(5, Adam(1e-2)), 5, lam=10.0),
    ]
    for strategy in strategies:
        solution = solve(
            study.problem(),
            strategy,
            partial(torch.optim.Adam, lr=0.2),
            steps=15,
            constraints=study.constraints(),
            validate=study.held_out(),
            progress=False,
        )
        learned = study.measure(solution.outer, solution.inner)
        assert learned[" + retrain"][LOSS] < 0.5 * single[LOSS]
        assert learned[" + retrain"][TEST] > single[TEST]
        assert LOSS not in learned[ON_ALL]  # Those images are no longer held back.


def test_perceptron_has_a_decay_for_each_parameter(digits_root: Path, tmp_path: Path) -> None:
    decaying = WeightDecay(
        str(digits_root), network="perceptron", hidden=5, train=60, validation=100, stopping=50
    )
    u = decaying.problem().outer
    assert {name: list(p.shape) for name, p in u.items()} == {
        "1.weight": [5, 784],
        "1.bias": [5],
        "3.weight": [10, 5],
        "3.bias": [10],
    }
    decaying.draw({"row": {name: p.detach() for name, p in u.items()}}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"decay": 0.0}, "decay is 0.0: it must be positive"),
        ({"decay": 2.0}, "0 < least <= decay <= most"),
        ({"train": 500}, "parts have 500, 1000, 500 images.* at most 600"),
    ],
)
def test_settings_that_make_no_sense(
    settings: dict[str, object], match: str, digits_root: Path
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        WeightDecay(str(digits_root), **settings).problem()  # type: ignore[arg-type]
