"""A network that changes training images."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewshot_blo.hypergrad import Implicit, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import SGD, Adam, InnerSteps, adapt
from fewshot_blo.solving.driver import solve
from fewshot_blo.studies import LearnedAugmentation
from fewshot_blo.studies.images.augmentation import CHANGED, LOSS, TEST, Augmenter, moved
from fewshot_blo.studies.images.classifiers import make_network
from fewshot_blo.studies.images.digits import Digits, Labelled


def study(folder: Path, **settings: object) -> LearnedAugmentation:
    sizes = {"train": 40, "validation": 60, "channels": 2, "hidden": 8, "batch": 20, "epochs": 10}
    return LearnedAugmentation(**{"root": str(folder), **sizes, **settings})  # type: ignore[arg-type]


class Tiny(LearnedAugmentation):
    """Softmax regression of grey noise in float64, without files."""

    @cached_property
    def _digits(self) -> Digits:
        generator = torch.Generator().manual_seed(0)

        def part(count: int) -> Labelled:
            x = torch.rand(count, 1, 28, 28, generator=generator, dtype=torch.float64) / 5
            return Labelled(x, torch.arange(count) % 10)

        return Digits([part(self.train), part(self.validation)], part(10))

    @cached_property
    def _model(self) -> nn.Module:
        return make_network("linear", self.seed).double()

    @cached_property
    def _augmenter(self) -> Augmenter:
        return Augmenter(self.channels).double()

    def inner_batch(self, step: int, inner_step: int) -> tuple[Tensor, Tensor]:
        del step, inner_step  # One batch for all steps, so that there is a minimiser.
        rows, noise = super().inner_batch(0, 0)
        return rows, noise.double()


@pytest.mark.parametrize(
    "strategy",
    [Implicit(InnerSteps(60, SGD(0.3)), ConjugateGradient(30)), Unroll(InnerSteps(60, SGD(0.3)))],
    ids=["implicit", "unroll"],
)
def test_hypergradient_is_that_of_full_retraining(strategy: Strategy) -> None:
    study = Tiny(train=4, validation=10, batch=4, channels=2, l2=1.0)
    problem = study.problem()
    found = strategy.hypergradient(problem.at(0), strategy.init()).gradient

    def retrained(shift: float, direction: dict[str, Tensor]) -> float:
        outer = {name: p.detach() + shift * direction[name] for name, p in problem.outer.items()}
        bilevel = replace(problem, outer=outer).at(0)
        v = adapt(bilevel.inner_loss, bilevel.inner_init, InnerSteps(60, SGD(0.3)))
        return float(bilevel.outer_loss(v))

    direction = {name: torch.randn_like(p) for name, p in problem.outer.items()}
    difference = (retrained(1e-7, direction) - retrained(-1e-7, direction)) / 2e-7
    slope = float(sum((found[name] * d).sum() for name, d in direction.items()))
    assert abs(difference) > 1e-5
    assert slope == pytest.approx(difference, rel=1e-3)  # Some units are near zero.


def test_noise_is_a_function_of_the_steps(digits_root: Path) -> None:
    augmenting = study(digits_root)
    rows, noise = augmenting.inner_batch(3, 1)
    again = study(digits_root).inner_batch(3, 1)
    assert torch.equal(rows, again[0])
    assert torch.equal(noise, again[1])
    for other in ((3, -1), (3, 0), (4, 1)):
        assert not torch.equal(noise, augmenting.inner_batch(*other)[1])
    assert not torch.equal(noise, study(digits_root, seed=1).inner_batch(3, 1)[1])


def test_images_moved_by_hand() -> None:
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, 10, 10] = 1
    still = torch.zeros(1, 4, 28, 28)
    assert torch.allclose(moved(x, still), x, atol=1e-6)
    right = still.clone()
    right[0, 0] = 2 / 1.5 / 28  # Two pixels, in standard deviations of the mean of all pixels.
    assert torch.allclose(moved(x, right), x.roll(-2, 3), atol=1e-5)


def test_goes_on_as_if_never_stopped(digits_root: Path, tmp_path: Path) -> None:
    def run(folder: Path, steps: int, *, resume: bool = False) -> dict[str, Tensor]:
        solution = solve(
            study(digits_root).problem(),
            Implicit(InnerSteps(2, Adam(1e-2)), ConjugateGradient(2)),
            partial(torch.optim.Adam, lr=1e-2),
            steps=steps,
            folder=folder,
            resume=resume,
            progress=False,
        )
        return dict(solution.outer)

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4, resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_rows_and_picture(digits_root: Path, tmp_path: Path) -> None:
    augmenting = study(digits_root)
    problem = augmenting.problem()
    rows = augmenting.measure(problem.outer, problem.inner)
    assert 0 < rows[""][CHANGED] < 0.1  # Before it is learned, a change is small.
    assert rows[" + retrain"][LOSS] < rows[""][LOSS]
    baselines = augmenting.baselines()
    more = baselines["train + validation, no augmentation"]
    assert more[TEST] >= baselines["no augmentation"][TEST]
    assert LOSS not in more
    augmenting.draw({"row": problem.outer}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
