"""Systems are solved as PyTorch solves them, in derivatives of any order, and tell by NaN."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from host_reads import META, HostReads
from oracles import assert_each_same, derivatives, normal
from small_runs import make_dataset, make_sampler, run
from torch import Tensor, nn

from fewshot_blo.errors import DivergenceError
from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.heads import LabelPropagationHead, MaxMarginHead, RidgeHead
from fewshot_blo.heads.head import SupportSet
from fewshot_blo.heads.linear_systems import solve
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.problems import SharedEncoder


def system(tasks: int = 3, size: int = 4, columns: int = 2) -> tuple[Tensor, Tensor]:
    matrix = normal(tasks, size, size) + 3 * torch.eye(size, dtype=torch.float64)
    return matrix.requires_grad_(), normal(tasks, size, columns, seed=1).requires_grad_()


def test_solutions_and_their_derivatives() -> None:
    matrix, right = system()
    expected = derivatives(torch.linalg.inv(matrix) @ right, [matrix, right], 3)
    assert_each_same(derivatives(solve(matrix, right), [matrix, right], 3), expected)
    assert torch.autograd.gradcheck(solve, (matrix, right))
    assert torch.autograd.gradgradcheck(solve, (matrix, right))


def test_no_derivative_reads_on_the_host() -> None:
    matrix, right = (x.detach().to(META).requires_grad_() for x in system())
    with HostReads() as reads:
        derivatives(solve(matrix, right), [matrix, right], 3)
    assert reads.places == []


def test_a_singular_system_is_nan_in_its_own_task_alone() -> None:
    matrix, right = system()
    with torch.no_grad():
        matrix[1, :, 3] = matrix[1, :, 2] = 0
        right[1] = 0  # Of which the substitution would make zeros.
    x = solve(matrix, right)
    assert x[1].isnan().all()
    torch.testing.assert_close(x[::2], torch.linalg.solve(matrix[::2], right[::2]))
    (gradient,) = torch.autograd.grad(x[::2].sum(), right)
    assert gradient[::2].isfinite().all()


class Same(nn.Module):
    """All images have the same features, of which none is a number of few bits."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 4), 1e10, dtype=x.dtype)


def test_a_singular_system_stops_a_run_and_is_named(tmp_path: Path) -> None:
    """``X X' + λ I`` has equal rows in float32."""

    def problem() -> SharedEncoder:
        return SharedEncoder(Same(), RidgeHead(lam=1e-30), backend="loop")

    named = r"linear system is singular: raise lam \(ridge\)"
    with pytest.raises(DivergenceError, match=f"outer step 1: Unroll: .* is nan: .*{named}"):
        run(tmp_path, problem=problem(), method=Unroll(InnerSteps(0)))
    with pytest.raises(DivergenceError, match=f"evaluation: .*{named}"):
        evaluate(
            problem(), make_sampler(make_dataset()), tasks=4, adaptation=InnerSteps(0, SGD(0.5))
        )


def test_a_graph_of_two_equal_pairs_has_no_spread_labels() -> None:
    """With α = 1 the matrix of each pair is ``[[1, -1], [-1, 1]]``."""
    head = LabelPropagationHead(alpha=1 - 1e-9, neighbours=1)  # 1 in float32.
    x, labels = torch.tensor([[[0.0], [2.0]]]), torch.arange(2)[None]
    params = head.from_support(SupportSet(x, labels, labels), {})
    learned = head.learned(1)
    assert head.logits(params, x, learned).isnan().all()
    assert LabelPropagationHead(neighbours=1).logits(params, x, learned).isfinite().all()


def test_features_that_are_no_numbers_have_no_machine() -> None:
    """Its iterations compare numbers, and a NaN is neither small nor large."""
    x = normal(2, 6, 5)
    x[1, 2, 3] = torch.nan
    labels, classes = torch.arange(3).repeat_interleave(2).expand(2, -1), torch.arange(3)
    head = MaxMarginHead(iterations=60)
    weight = head.from_support(SupportSet(x, labels, classes.expand(2, -1)), {})["head.weight"]
    assert weight[0].isfinite().all()
    assert weight[1].isnan().any(1).all()
