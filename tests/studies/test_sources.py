"""Weights of sources of data with planted noise."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Implicit, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.driver import solve
from fewshot_blo.studies import SourceReweighting
from fewshot_blo.studies.images.classifiers import make_network
from fewshot_blo.studies.images.digits import Digits, Labelled
from fewshot_blo.studies.images.sources import AUC, RANKS, TEST, rank_correlation


class Double(SourceReweighting):
    """On few random images in float64."""

    @property
    def _digits(self) -> Digits:
        generator = torch.Generator().manual_seed(0)

        def part(count: int) -> Labelled:
            x = torch.rand(count, 1, 28, 28, generator=generator, dtype=torch.float64) / 5
            return Labelled(x, torch.arange(count) % 10)

        return Digits([part(self.sources * self.images), part(self.validation)], part(10))

    @property
    def _model(self) -> nn.Module:
        return make_network("linear", self.seed).double()


def retrained_loss(study: Double, logit: torch.Tensor) -> float:
    """F after Newton's method on G of matrices, written out source by source."""
    (x, _), (clean_x, clean_y) = study._digits.parts
    x, clean_x = (
        torch.cat([p.flatten(1), torch.ones(len(p), 1).double()], 1) for p in (x, clean_x)
    )

    def loss(flat: torch.Tensor) -> torch.Tensor:
        w, weights = flat.view(785, 10), logit.softmax(0)
        every = [
            weights[s] * F.cross_entropy(x[study.source == s] @ w, study.labels[study.source == s])
            for s in range(study.sources)
        ]
        return torch.stack(every).sum() + study.l2 / 2 * flat.square().sum()

    # The minimiser is in the span of the images: Newton's method on its coordinates there.
    basis = torch.linalg.qr(x.T)[0]
    z = torch.zeros(basis.shape[1] * 10, dtype=torch.float64)

    def inside(z: torch.Tensor) -> torch.Tensor:
        return loss((basis @ z.view(-1, 10)).flatten())

    for _ in range(12):
        slope = torch.autograd.functional.jacobian(inside, z)
        curvature = torch.autograd.functional.hessian(inside, z, vectorize=True)
        z = z - torch.linalg.solve(curvature, slope)
    return float(F.cross_entropy(clean_x @ basis @ z.view(-1, 10), clean_y))


_SETTINGS: dict[str, Any] = {
    "sources": 4,
    "images": 4,
    "validation": 12,
    "l2": 0.05,
    "most_noise": 0.5,
}
LOGIT = (0.3, -0.2, 0.1, 0.5)


@pytest.fixture(scope="module")
def retrained_slopes() -> list[float]:
    """Central differences of the retrained loss, the same for every strategy."""
    study, logit = Double(**_SETTINGS), torch.tensor(LOGIT, dtype=torch.float64)
    return [
        (retrained_loss(study, logit + step) - retrained_loss(study, logit - step)) / 2e-4
        for step in 1e-4 * torch.eye(4, dtype=torch.float64)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        Implicit(InnerSteps(1500, SGD(1.0)), ConjugateGradient(60)),
        Unroll(InnerSteps(600, SGD(1.0))),
    ],
    ids=["implicit", "unroll"],
)
def test_hypergradient_is_that_of_full_retraining(
    strategy: Strategy, retrained_slopes: list[float]
) -> None:
    problem = Double(**_SETTINGS).problem()
    problem = type(problem)(
        {"logit": torch.tensor(LOGIT, dtype=torch.float64)},
        problem.inner,
        problem.inner_loss,
        problem.outer_loss,
        problem.inner_batches,
        problem.outer_batches,
    )
    gradient = strategy.hypergradient(problem.at(0), strategy.init()).gradient["logit"]
    for found, slope in zip(gradient.tolist(), retrained_slopes, strict=True):
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-9)


def small(folder: Path, **settings: Any) -> SourceReweighting:
    return SourceReweighting(
        **{"root": str(folder), "sources": 6, "images": 40, "validation": 60, **settings}
    )


def test_noisy_sources_lose_their_weight(digits_root: Path) -> None:
    study = small(digits_root, least_noise=0.5)
    strategy = Implicit(InnerSteps(5, SGD(0.05)), ConjugateGradient(5))
    optimizer: Any = partial(torch.optim.Adam, lr=0.1)
    found = solve(study.problem(), strategy, optimizer, steps=60, progress=False)
    figures = study.measure(found.outer, found.inner)
    assert figures[""][AUC] == 1
    assert figures[""][RANKS] < -0.6
    assert TEST in figures[" + retrain"]


def test_labels_are_as_noisy_as_told(digits_root: Path) -> None:
    study = small(digits_root, sources=4, images=100, least_noise=0.4, most_noise=1.0)
    wrong = study.labels != study._digits.parts[0].y
    shares = [float(wrong[study.source == s].double().mean()) for s in range(4)]
    assert shares[:2] == [0, 0]
    assert shares[2] == pytest.approx(0.4, abs=0.15)
    assert shares[3] == 1


def test_baselines_stand_in_order(digits_root: Path) -> None:
    rows = small(digits_root, least_noise=0.5).baselines()
    assert rows["oracle: clean sources alone"][TEST] >= rows["equal weights"][TEST]
    assert rows["weights by agreement"][AUC] == 1


def test_rank_correlation_is_that_of_scipy() -> None:
    noise = torch.tensor([0.0, 0.0, 0.1, 0.4, 0.9])
    weights = torch.tensor([0.3, 0.2, 0.25, 0.1, 0.1])
    expected = spearmanr(weights.numpy(), noise.numpy()).statistic
    assert rank_correlation(weights, noise) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(torch.ones(5), noise) == 0


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sources": 5}, "must be even"),
        ({"least_noise": 0.0}, "least_noise is 0.0: it must be in "),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        SourceReweighting(**settings)
