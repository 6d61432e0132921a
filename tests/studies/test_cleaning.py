"""Data cleaning as in the benchmark of bilevel solvers, against plain NumPy and scikit-learn."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import SABA, SOBA
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.driver import solve
from fewshot_blo.solving.falling import falling
from fewshot_blo.studies import Cleaning
from fewshot_blo.studies.images.cleaning import RIGHT, TEST, VALIDATION, WRONG
from fewshot_blo.studies.images.digits import read_digits


def study(folder: Path, **settings: Any) -> Cleaning:
    return Cleaning(**{"root": str(folder), "train": 300, "validation": 100, **settings})


def test_pixels_are_scaled_as_by_scikit_learn(digits_root: Path) -> None:
    raw = read_digits(str(digits_root), (300, 100), 0)
    scaler = StandardScaler().fit(raw.parts[0].x.flatten(1).double().numpy())
    scaled = study(digits_root)._digits
    for own, part in ((scaled.parts[0], raw.parts[0]), (scaled.test, raw.test)):
        expected = scaler.transform(part.x.flatten(1).double().numpy())
        np.testing.assert_allclose(own.x.numpy(), expected, atol=2e-4, rtol=1e-4)


def test_losses_are_those_of_the_benchmark(digits_root: Path) -> None:
    """``mean_i σ(u_i) CE_i + reg |v|²`` of a block, and the mean CE, by logarithms of sums."""
    cleaning = study(digits_root)
    problem = cleaning.problem()
    rng = np.random.default_rng(0)
    w, u = rng.normal(size=(784, 10)) / 30, rng.normal(size=300)
    v = {"weight": torch.tensor(w, dtype=torch.float32)}
    outer = {"logit": torch.tensor(u, dtype=torch.float32)}

    def losses(x: Any, y: Any) -> Any:
        logits = x.double().numpy() @ w
        return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y.numpy()]

    assert problem.inner_blocks is not None
    assert problem.outer_blocks is not None
    rows, clean = problem.inner_blocks[1], problem.outer_blocks[1]
    own = losses(cleaning._digits.parts[0].x[rows], cleaning.labels[rows])
    expected = (own / (1 + np.exp(-u[rows]))).mean() + 0.2 * (w**2).sum()
    assert float(problem.inner_loss(v, outer, rows)) == pytest.approx(expected, rel=1e-5)  # type: ignore[call-arg]
    part = cleaning._digits.parts[1]
    expected = losses(part.x[clean], part.y[clean]).mean()
    assert float(problem.outer_loss(v, outer, clean)) == pytest.approx(expected, rel=1e-5)  # type: ignore[call-arg]


def test_blocks_are_the_data(digits_root: Path) -> None:
    problem = study(digits_root).problem()
    assert problem.inner_blocks is not None
    assert problem.outer_blocks is not None
    for blocks, count in ((problem.inner_blocks, 300), (problem.outer_blocks, 100)):
        rows = torch.cat([torch.arange(count)[block] for block in blocks])
        assert torch.equal(rows, torch.arange(count))
        sizes = {len(torch.arange(count)[block]) for block in blocks}
        assert max(sizes) <= 64
        assert max(sizes) - min(sizes) <= 1
    whole = study(digits_root, batch=0).problem()
    assert whole.inner_blocks == [slice(0, 300)]


def test_labels_are_replaced_by_any_of_the_ten(digits_root: Path) -> None:
    cleaning = study(digits_root, noise=0.5)
    assert 0.35 < float(cleaning.wrong.double().mean()) < 0.55  # 0.5 * 9/10, of 300.
    assert float(study(digits_root, noise=1.0).wrong.double().mean()) > 0.8


@pytest.mark.parametrize("kind", [SOBA, SABA])
def test_wrong_labels_lose_their_weight(kind: Any, digits_root: Path) -> None:
    cleaning = study(digits_root, batch=50)
    rate = falling(partial(torch.optim.SGD, lr=300.0), 0.5)
    strategy = kind(InnerSteps(1, SGD(0.1)), 0.1, 0.5)
    observe = cleaning.observe()
    found = solve(cleaning.problem(), strategy, rate, steps=400, observe=observe, progress=False)
    figures = cleaning.measure(found.outer, found.inner)
    assert figures[""][RIGHT] > 2 * figures[""][WRONG]
    assert figures[""][TEST] == found.history[-1][TEST]
    baselines = cleaning.baselines()
    assert figures[" + retrain"][TEST] <= baselines["equal weights"][TEST]
    assert {TEST, VALIDATION} == set(baselines["oracle: right labels alone"])


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_noise_is_a_probability(noise: float, digits_root: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"noise is .*: it must be in \(0, 1\]"):
        study(digits_root, noise=noise)
