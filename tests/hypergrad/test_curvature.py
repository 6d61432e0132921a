"""Measured curvature, against the eigenvalues of dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewshot_blo.bilevel import TaskParams
from fewshot_blo.hypergrad.curvature import curvature, ritz_values


def matrices(seed: int, size: int) -> Tensor:
    """Two symmetric matrices, the second of them indefinite."""
    torch.manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(2, size, size, dtype=torch.float64))
    values = torch.linspace(0.5, 20, size, dtype=torch.float64).expand(2, -1).clone()
    values[1, 0] = -3.0
    found: Tensor = q @ torch.diag_embed(values) @ q.mT
    return found


@pytest.mark.parametrize("size", [1, 2, 7])
def test_all_eigenvalues_of_small_matrices(size: int) -> None:
    h = matrices(0, size)
    found = ritz_values(lambda v: {"v": torch.einsum("tij,tj->ti", h, v["v"])}, {"v": h[:, 0]})
    torch.testing.assert_close(found, torch.linalg.eigvalsh(h), rtol=1e-8, atol=1e-8)


def test_extremes_of_a_large_one() -> None:
    h = matrices(1, 200)
    found = ritz_values(lambda v: {"v": torch.einsum("tij,tj->ti", h, v["v"])}, {"v": h[:, 0]})
    exact = torch.linalg.eigvalsh(h)
    torch.testing.assert_close(found[:, -1], exact[:, -1], rtol=0.02, atol=0)
    assert (found[:, 0] >= exact[:, 0] - 1e-9).all()
    assert found[1, 0] < 0


def test_an_invariant_space_that_ends_early() -> None:
    h = 3 * torch.eye(5, dtype=torch.float64).expand(2, -1, -1)
    found = ritz_values(lambda v: {"v": torch.einsum("tij,tj->ti", h, v["v"])}, {"v": h[:, 0]})
    torch.testing.assert_close(found, torch.full_like(found, 3.0))


def test_of_a_loss() -> None:
    h = matrices(2, 4)

    def loss(v: TaskParams) -> Tensor:
        flat = torch.cat([v["a"].flatten(1), v["b"]], 1)
        return 0.5 * torch.einsum("ti,tij,tj->t", flat, h, flat) + flat.sum(1)

    start = {"a": torch.zeros(2, 3, 1, dtype=torch.float64)}
    start["b"] = torch.ones(2, 1, dtype=torch.float64)
    found, exact = curvature(loss, start), torch.linalg.eigvalsh(h)
    torch.testing.assert_close(found.smallest, exact[:, 0])
    torch.testing.assert_close(found.largest, exact.abs().amax(1))
    torch.testing.assert_close(found.positive, torch.where(exact > 0, exact, torch.inf).amin(1))
