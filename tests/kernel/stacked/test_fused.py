"""Batch norm, ReLU and pooling in one against PyTorch's layers one after another.

The kernels are those in C, unless ``test_triton`` asks for those in Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import oracles
import pytest
import torch
import torch.nn.functional as F
from oracles import assert_each_same, derivatives
from torch import Tensor
from triton_asked import ASKED, DEVICE, use_asked_kernels, use_small_tiles

from fewshot_blo.kernel.stacked.fused import Then, norm_relu_pool
from fewshot_blo.kernel.stacked.fused.device import kernels_for

pytestmark = pytest.mark.usefixtures("_kernels")
GROUPS = 3
THEN = [Then(slope, pool) for slope in (0.0, 0.1, 1.0) for pool in (1, 2)]


@pytest.fixture
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    use_asked_kernels(monkeypatch)
    if kernels_for(DEVICE).reason:
        pytest.skip(f"no fused kernels: {kernels_for(DEVICE).reason}")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal entries in float64 on the kernels' device."""
    return oracles.normal(*shape, seed=seed).to(DEVICE)


def leaves_for(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images away from zero mean, scales of either sign, shifts."""
    images, vector = shape, shape[-3]
    x, scale, shift = 3 + 2 * normal(*images), normal(vector, seed=1), normal(vector, seed=2)
    return x.requires_grad_(), scale.requires_grad_(), shift.requires_grad_()


def plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    then: Then,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    # Not F.batch_norm, whose third derivative takes the statistics for constants.
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    mean, variance = statistics or (mean, variance)
    scale = weight / (variance + 1e-3).sqrt()
    y = (x - mean.reshape(-1, 1, 1)) * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
    y = F.leaky_relu(y, then.slope)
    return F.max_pool2d(y, 2) if then.pool == 2 else y


def fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    then: Then,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """With one group of images."""
    if statistics is not None:
        statistics = statistics[0].unsqueeze(0), statistics[1].unsqueeze(0)
    vectors = weight.unsqueeze(0), bias.unsqueeze(0)
    return norm_relu_pool(x, *vectors, 1e-3, then, statistics=statistics)


@pytest.mark.parametrize("size", [(4, 6), (5, 4), (4, 7), (1, 1)])
@pytest.mark.parametrize("then", THEN, ids=str)
def test_equals_layers_to_third_order(then: Then, size: tuple[int, int]) -> None:
    if then.pool == 2 and size == (1, 1):
        pytest.skip("PyTorch does not pool an image of one pixel")
    leaves = leaves_for(7, 4, *size)
    ours, theirs = fused(*leaves, then), plain(*leaves, then)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert_each_same(derivatives(ours, leaves, 3), derivatives(theirs, leaves, 3))


@pytest.mark.parametrize("then", THEN, ids=str)
def test_second_derivatives_without_a_graph(then: Then, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last derivative of an unrolled step has no graph, and kernels of its own."""
    use_small_tiles(monkeypatch)
    leaves = leaves_for(7, 4, 5, 6)
    ours, theirs = (second_derivatives(function, leaves, then) for function in (fused, plain))
    assert_each_same(ours, theirs)


def second_derivatives(
    function: Callable[..., Tensor], leaves: Sequence[Tensor], then: Then
) -> tuple[Tensor, ...]:
    """Of a curved function of the output, without a graph of their own."""
    value = function(*leaves, then).sin().sum()
    gradients = torch.autograd.grad(value, leaves, create_graph=True)
    total = torch.stack([g.sin().sum() for g in gradients]).sum()
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("then", THEN, ids=str)
def test_given_statistics(then: Then) -> None:
    leaves = leaves_for(7, 4, 5, 6)
    statistics = normal(4, seed=3), normal(4, seed=4).abs()
    ours, theirs = (function(*leaves, then, statistics) for function in (fused, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert_each_same(derivatives(ours, leaves, 2), derivatives(theirs, leaves, 2))


def test_the_first_of_equal_values_gets_the_gradient() -> None:
    x, weight, bias = leaves_for(2, 3, 4, 4)
    x = x.detach().round().requires_grad_()
    leaves = (x, weight.detach().abs().requires_grad_(), bias)
    assert_each_same(
        derivatives(fused(*leaves, Then(0.1, 2)), leaves, 2),
        derivatives(plain(*leaves, Then(0.1, 2)), leaves, 2),
    )


@pytest.mark.parametrize("first", [None, 2])
@pytest.mark.parametrize("then", [Then(0.0, 2), Then(0.1, 1)], ids=str)
def test_groups_equal_a_loop(
    then: Then, first: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_tiles(monkeypatch)
    x = normal(GROUPS, 5, 4, 4, 6).requires_grad_()
    scale, shift = (normal(GROUPS, 4, seed=seed).requires_grad_() for seed in (1, 2))
    leaves = (x, scale, shift)
    ours = norm_relu_pool(x.flatten(0, 1), scale, shift, 1e-3, then, first=first)
    rows = []
    for group in range(GROUPS):
        variance, mean = torch.var_mean(x[group, :first], (0, 2, 3), correction=0)
        rows.append(plain(x[group], scale[group], shift[group], then, (mean, variance)))
    theirs = torch.cat(rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert_each_same(derivatives(ours, leaves, 2), derivatives(theirs, leaves, 2))


def test_single_precision_sums_are_as_good_as_torchs() -> None:
    x = (100 + normal(*((8, 3, 20, 20) if ASKED == "triton" else (64, 3, 40, 40)))).float()
    weight, bias = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    exact = plain(x.double(), weight.double(), bias.double(), Then())
    ours = fused(x, weight, bias, Then())
    theirs = F.batch_norm(x, None, None, weight, bias, True, eps=1e-3)
    error, torchs = ((y.double() - exact).abs().max() for y in (ours, theirs))
    assert error <= 2 * torchs


@pytest.mark.parametrize("then", [Then(0.0, 2), Then(0.1, 1)], ids=str)
def test_single_precision(then: Then) -> None:
    leaves = leaves_for(7, 4, 5, 6)
    exact = second_derivatives(plain, leaves, then)
    ours = second_derivatives(fused, [p.detach().float().requires_grad_() for p in leaves], then)
    for single, double in zip(ours, exact, strict=True):
        assert (single - double).norm() <= 1e-4 * double.norm()


@pytest.mark.parametrize("then", [Then(0.0, 2), Then(0.1, 1)], ids=str)
def test_bfloat16_images(then: Then) -> None:
    if torch.bfloat16 not in kernels_for(DEVICE).dtypes:
        pytest.skip("the host's kernels have no bfloat16")
    x, *vectors = (p.detach().bfloat16() for p in leaves_for(7, 4, 5, 6))

    def single(x: Tensor, weight: Tensor, bias: Tensor, then: Then) -> Tensor:
        vectors = weight.unsqueeze(0), bias.unsqueeze(0)
        return norm_relu_pool(x, *vectors, 1e-3, then, dtype=torch.float32)

    def derivatives_of(function: Callable[..., Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
        return second_derivatives(function, [p.requires_grad_() for p in leaves], then)

    exact = derivatives_of(plain, x.double(), *(p.double() for p in vectors))
    ours = derivatives_of(single, x, *(p.float() for p in vectors))
    assert [p.dtype for p in ours] == [torch.bfloat16, torch.float32, torch.float32]
    for rounded, double in zip(ours, exact, strict=True):
        assert (rounded - double).norm() <= 0.02 * double.norm()


def test_threads_change_nothing() -> None:
    x, scale, shift = (p.detach().float().requires_grad_() for p in leaves_for(33, 5, 6, 6))
    leaves = (x, scale, shift)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(derivatives(fused(*leaves, Then(0.0, 2)), leaves, 2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("position", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_nan_is_not_pooled_away(position: tuple[int, int]) -> None:
    x = normal(2, 3, 4, 4)
    x[(0, 1, *position)] = torch.nan
    statistics = torch.zeros_like(x[0, :, 0, 0]), torch.ones_like(x[0, :, 0, 0])
    ones, zeros = torch.ones_like(statistics[0]), torch.zeros_like(statistics[0])
    y = fused(x, ones, zeros, Then(0.0, 2), statistics)
    assert y[0, 1, 0, 0].isnan()
    assert y.isnan().sum() == 1
