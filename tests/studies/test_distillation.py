"""Dataset distillation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.driver import Solution, Start, solve
from fewshot_blo.solving.problem import PlainProblem, unstacked
from fewshot_blo.studies import AS_FOUND, RETRAINED, Distillation
from fewshot_blo.studies.images.distillation import SPREAD, TEST

COLD = UnrollState()


def study(folder: Path, **settings: object) -> Distillation:
    """With more noise in the digits: one image a class must not be enough."""
    plain = {"root": str(folder), "train": 400, "validation": 100, "batch": 100, "hidden": 16}
    made = Distillation(**{**plain, "retrainings": 2, "retraining_steps": 100, **settings})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for part in (*made._digits.parts, made._digits.test):
        part.x.add_(torch.randn(part.x.shape, generator=generator)).clamp_(0, 1)
    return made


def distilled(distillation: Distillation, start: Start, steps: int) -> Solution:
    return solve(
        distillation.problem(),
        Unroll(InnerSteps(5, SGD(0.1))),
        lambda leaves: torch.optim.Adam(leaves, 0.1),
        steps=steps,
        start=start,
        constraints=distillation.constraints(),
        validate=distillation.held_out(),
        every=10,
        progress=False,
    )


def in_double_precision(problem: PlainProblem) -> tuple[PlainProblem, torch.Tensor]:
    """The same problem, and its synthetic images."""
    images = problem.outer["images"].detach().double()
    inner = {name: p.double() for name, p in problem.inner.items()}
    double = PlainProblem(
        {"images": images},
        inner,
        problem.inner_loss,
        problem.outer_loss,
        outer_batches=problem.outer_batches,
    )
    return double, images


def test_gradient_of_a_cold_step_against_finite_differences(digits_root: Path) -> None:
    distillation = study(digits_root)
    digits = distillation._digits
    for part in digits.parts:
        part.x.data = part.x.data.double()
    problem, images = in_double_precision(distillation.problem())
    strategy = Unroll(InnerSteps(3, SGD(0.1)))
    gradient = strategy.hypergradient(problem.at(0), COLD).gradient["images"]
    direction = torch.randn_like(gradient)
    width, losses = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            images += sign * width * direction
        losses.append(strategy.hypergradient(problem.at(0), COLD).outer_loss[0])
        with torch.no_grad():
            images -= sign * width * direction
    slope = (losses[0] - losses[1]) / (2 * width)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("cold", "suffix"), [("fixed", AS_FOUND), ("fresh", RETRAINED)])
def test_distilled_images_teach_more_than_real_ones(
    cold: str, suffix: str, digits_root: Path
) -> None:
    distillation = study(digits_root, cold=cold)
    solution = distilled(distillation, "cold", 40)
    images = solution.outer["images"]
    assert images.min() >= 0
    assert images.max() <= 1
    found = distillation.measure(solution.outer, solution.inner)[suffix]
    real = distillation.baselines()["random real images, 1 a class"]
    assert found[TEST] > real[TEST] + 10


def test_a_cold_solution_can_be_had_again_and_a_warm_one_not(digits_root: Path) -> None:
    distillation = study(digits_root)
    strategy = Unroll(InnerSteps(5, SGD(0.1)))
    ways: tuple[Start, Start] = ("cold", "warm")
    cold, warm = (distilled(distillation, start, 20) for start in ways)
    again = []
    for solution in (cold, warm):
        problem = distillation.problem()
        with torch.no_grad():
            problem.outer["images"].copy_(solution.outer["images"])
        v = unstacked(strategy.hypergradient(problem.at(0), COLD).inner)
        found, anew = (
            distillation.measure(solution.outer, w)[AS_FOUND][TEST] for w in (solution.inner, v)
        )
        again.append(abs(found - anew))
    # Weights of a warm start come from all images of the past, not from the last ones alone.
    # Those of a cold start are of the images before the last outer step.
    assert again[1] > 15
    assert again[1] > 2 * again[0]


def test_where_inner_problems_start(digits_root: Path) -> None:
    fixed, fresh = (study(digits_root, cold=cold).problem() for cold in ("fixed", "fresh"))

    def first(problem: PlainProblem, step: int) -> torch.Tensor:
        return next(iter(problem.at(step).inner_init.values()))

    assert torch.equal(first(fixed, 0), first(fixed, 1))
    assert not torch.equal(first(fresh, 0), first(fresh, 1))
    assert torch.equal(first(fresh, 1), first(study(digits_root, cold="fresh").problem(), 1))
    seen = {float(first(fresh, step).sum()) for step in range(5)}
    unseen = {float(next(iter(study(digits_root)._start(k).values())).sum()) for k in (1, 2)}
    assert not seen & unseen


def test_as_many_real_images_of_each_digit(digits_root: Path) -> None:
    distillation = study(digits_root, per_class=3)
    drawn = distillation._random(0)
    assert torch.bincount(drawn.y).tolist() == [3] * 10
    assert torch.bincount(distillation.labels).tolist() == [3] * 10
    assert not torch.equal(drawn.x, distillation._random(1).x)
    row = distillation.baselines()["random real images, 3 a class"]
    assert row[SPREAD] > 0


def test_the_picture_has_one_image_of_each_digit(
    digits_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[Mapping[str, torch.Tensor]] = []
    monkeypatch.setattr(
        "fewshot_blo.studies.images.distillation.images",
        lambda title, rows, titles, path: drawn.append(rows),
    )
    distillation = study(digits_root, per_class=2)
    values = distillation.labels.float()[:, None, None, None].expand(-1, 1, 28, 28)
    distillation.draw({"cold": {"images": values}}, tmp_path / "picture.png")
    assert drawn[0]["cold"][:, 0, 0].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"per_class": 0}, "per_class is 0"),
        ({"retrainings": 0}, "retrainings is 0"),
        ({"network": "linear", "cold": "fresh"}, "always zero"),
    ],
)
def test_settings_that_make_no_sense(
    settings: dict[str, object], match: str, digits_root: Path
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        study(digits_root, **settings)
