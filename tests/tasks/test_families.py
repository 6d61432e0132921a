"""Families of functions: what is drawn, from the draws alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from fewshot_blo.tasks import DataError, TaskBatch
from fewshot_blo.tasks.families import (
    FAMILIES,
    Family,
    FunctionSampler,
    Harmonic,
    LinearMixture,
    Sinusoid,
    SinusoidOrLine,
)


def points_of(family: Family, tasks: int, points: int = 20, **settings: Any) -> tuple[Any, Any]:
    """Points ``[T, M, D]`` and targets ``[T, M]`` of support and query sets together."""
    sampler = FunctionSampler(
        family, shot=points // 2, query=points // 2, tasks=tasks, dtype=torch.float64, **settings
    )
    batch = sampler.batch(0)
    x = torch.cat([tensor_of(batch.support_x), tensor_of(batch.query_x)], 1)
    return x.numpy(), torch.cat([batch.support_y, batch.query_y], 1)[..., 0].numpy()


def tensor_of(inputs: Any) -> Tensor:
    assert isinstance(inputs, Tensor)
    return inputs


def uniform(values: Any, low: float, high: float) -> None:
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def fitted(columns: Any, y: Any) -> tuple[Any, float]:
    """Coefficients of least squares, and the largest residual."""
    found = np.linalg.lstsq(columns, y, rcond=None)[0]
    return found, float(np.abs(columns @ found - y).max())


def test_sinusoids_are_those_of_maml() -> None:
    x, y = points_of(Sinusoid(), 500)
    assert x.shape == (500, 20, 1)
    amplitudes, phases = [], []
    for own, values in zip(x[..., 0], y, strict=True):
        # a sin(x - p) = a cos p sin x - a sin p cos x
        (s, c), residual = fitted(np.stack([np.sin(own), np.cos(own)], 1), values)
        assert residual < 1e-12
        amplitudes.append(math.hypot(s, c))
        phases.append(math.atan2(-c, s))
    uniform(amplitudes, 0.1, 5.0)
    uniform(phases, 0.0, math.pi)
    uniform(x.ravel(), -5.0, 5.0)


def test_harmonics_have_two_frequencies() -> None:
    x, y = points_of(Harmonic(), 100)
    frequencies = []

    def columns(x: Any, w: float) -> Any:
        return np.stack([f(k * w * x) for k in (1, 2) for f in (np.sin, np.cos)], 1)

    for own, values in zip(x[..., 0], y, strict=True):

        def residual(w: float, own: Any = own, values: Any = values) -> float:
            return fitted(columns(own, w), values)[1]

        start = min(np.linspace(5, 7, 81), key=residual)
        found = optimize.minimize_scalar(
            residual,
            bounds=(start - 0.03, start + 0.03),
            method="bounded",
            options={"xatol": 1e-12},
        )
        assert found.fun < 1e-6
        frequencies.append(found.x)
    uniform(frequencies, 5.0, 7.0)
    x, y = points_of(Harmonic(), 3000)
    centres = x[..., 0].mean(1)
    assert centres.std() == pytest.approx(math.sqrt(64 / 12 + 1 / 20), rel=0.03)
    assert (x[..., 0] - centres[:, None]).std() == pytest.approx(math.sqrt(19 / 20), rel=0.03)
    assert y.var() == pytest.approx(1.0, rel=0.1)  # Two amplitudes of variance 1, halved by a sine.


def test_half_of_the_functions_are_lines() -> None:
    x, y = points_of(SinusoidOrLine(noise=0.0), 400)
    lines = []
    for own, values in zip(x[..., 0], y, strict=True):
        line, off_line = fitted(np.stack([own, np.ones_like(own)], 1), values)
        wave = fitted(np.stack([np.sin(own), np.cos(own)], 1), values)[1]
        assert min(off_line, wave) < 1e-12
        if off_line < wave:
            lines.append(line)
    assert stats.binomtest(len(lines), 400, 0.5).pvalue > 1e-3
    for parameter in np.array(lines).T:
        uniform(parameter, -3.0, 3.0)


def test_noise() -> None:
    assert SinusoidOrLine().noise == 0.3
    clean, noisy = (points_of(Sinusoid(noise=n), 200)[1] for n in (0.0, 0.5))
    assert stats.kstest((noisy - clean).ravel(), stats.norm(0, 0.5).cdf).pvalue > 1e-3


def test_coefficients_are_at_their_centres() -> None:
    family = LinearMixture(dimensions=3, components=2)
    x, y = points_of(family, 100)
    found = np.array([fitted(own, values)[0] for own, values in zip(x, y, strict=True)])
    distances = np.linalg.norm(found[:, None] - family.centres, axis=-1)
    assert distances.min(1).max() < 1e-12
    assert stats.binomtest(int((distances.argmin(1) == 0).sum()), 100, 0.5).pvalue > 1e-3


def test_ridge_regression_has_the_error_of_the_posterior() -> None:
    """``σ² (1 + tr (X'X + σ²/s² I)^-1)`` for standard normal queries."""
    family = LinearMixture(dimensions=4, components=1, spread=0.7, noise=0.5)
    sampler = FunctionSampler(family, shot=6, query=50, tasks=500, dtype=torch.float64)
    batch = sampler.batch(0)
    x, y = tensor_of(batch.support_x), batch.support_y
    centre = torch.from_numpy(family.centres[0])[:, None]
    inverse = torch.linalg.inv(x.mT @ x + (0.5 / 0.7) ** 2 * torch.eye(4, dtype=torch.float64))
    w = centre + inverse @ x.mT @ (y - x @ centre)
    errors = (tensor_of(batch.query_x) @ w - batch.query_y).square().mean((1, 2))
    expected = 0.25 * (1 + inverse.diagonal(dim1=1, dim2=2).sum(1))
    difference = errors - expected
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(500)


@pytest.mark.parametrize("family", [kind() for kind in FAMILIES], ids=lambda f: type(f).__name__)
def test_a_task_depends_on_its_number_alone(family: Family) -> None:
    sampler = FunctionSampler(family, shot=3, query=4, tasks=5, seed=2)
    batch = sampler.batch(1)
    assert isinstance(batch, TaskBatch)
    assert tensor_of(batch.support_x).shape == (5, 3, family.inputs)
    assert batch.query_y.shape == (5, 4, 1)
    assert batch.query_y.dtype == torch.float32
    assert (batch.way, batch.padded) == (0, False)
    one = sampler.between(7, 8)
    for name, tensor in batch.flat.items():
        assert torch.equal(one.flat[name], tensor[2:3]), name
    settings: list[dict[str, Any]] = [
        {"seed": 1},
        {"seed": 2, "split": "validation"},
        {"seed": 2, "split": "test"},
    ]
    others = [FunctionSampler(family, shot=3, query=4, tasks=5, **s).batch(1) for s in settings]
    for other in others:
        assert not torch.isin(other.query_y, batch.query_y).any()
    noise, x = family.noise, tensor_of(batch.query_x)[0].double().numpy()
    clean = sampler.function(5)(x)
    assert np.abs(clean - batch.query_y[0].numpy()).max() < 1e-5 + 5 * noise


@dataclass(frozen=True)
class Parabola(Family):
    """A family of one's own."""

    def draw(self, rng: np.random.Generator, points: int) -> Any:
        a = rng.uniform()
        return rng.uniform(size=(points, 1)), lambda x: a * x**2


def test_a_family_of_ones_own() -> None:
    x, y = points_of(Parabola(), 3)
    ratio = y / x[..., 0] ** 2
    assert np.ptp(ratio, axis=1).max() < 1e-12
    assert repr(FunctionSampler(Parabola())).startswith(
        "FunctionSampler(parabola, 10 shots, 10 queries, 25 tasks a batch, train, seed 0"
    )


def test_what_does_not_fit() -> None:
    with pytest.raises(DataError, match=r"phase is \(2\.0, 1\.0\)"):
        Sinusoid(phase=(2.0, 1.0))
    with pytest.raises(DataError, match="must be a floating-point dtype"):
        FunctionSampler(Sinusoid(), dtype=torch.int64)
    with pytest.raises(DataError, match="index is -1"):
        FunctionSampler(Sinusoid()).batch(-1)
    with pytest.raises(DataError, match="does not draw its tasks from a fixed set"):
        FunctionSampler(Sinusoid()).between(0, 1, torch.zeros(1, 1))
