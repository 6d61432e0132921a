"""A convolution and its derivatives against PyTorch's own."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_each_same, derivatives, normal
from torch import Tensor
from torch.func import vmap

from fewshot_blo.kernel import convolution_choice
from fewshot_blo.kernel.convolution import convolve
from fewshot_blo.kernel.convolution_algorithms import ALGORITHMS, Algorithm, Geometry

GEOMETRIES = {
    "padded": Geometry(padding=(1, 1)),
    "strided": Geometry(stride=(2, 1), padding=(1, 2)),
    "dilated": Geometry(dilation=(1, 2), padding=(0, 2)),
    "grouped": Geometry(padding=(1, 1), groups=2),
    "channels-last": Geometry(padding=(1, 1), channels_last=True),
    "channels-last, grouped": Geometry(groups=2, stride=(2, 2), channels_last=True),
}
TASKS = 3


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    g = geometry
    return F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_equals_torch_to_third_order(
    geometry: Geometry, channels: int, algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution_choice, "choose", lambda *_: algorithm)
    x = normal(2, channels, 5, 6, seed=0).requires_grad_()
    weight = normal(4, channels // geometry.groups, 3, 2, seed=1).requires_grad_()
    bias = normal(4, seed=2).requires_grad_()
    leaves = (x, weight, bias)
    ours, theirs = convolve(*leaves, geometry), plain(*leaves, geometry)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert_each_same(derivatives(ours, leaves, 3), derivatives(theirs, leaves, 3), 1e-10)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("stacked", list(itertools.product([True, False], repeat=3))[:-1])
def test_tasks_equal_a_loop(stacked: tuple[bool, ...], channels_last: bool) -> None:
    geometry = Geometry(padding=(1, 1), channels_last=channels_last)
    shapes = ((2, 3, 4, 4), (5, 3, 3, 3), (5,))
    leaves = [
        normal(*((TASKS, *shape) if has_axis else shape), seed=seed).requires_grad_()
        for seed, (shape, has_axis) in enumerate(zip(shapes, stacked, strict=True))
    ]
    ours = vmap(
        lambda *arguments: convolve(*arguments, geometry),
        in_dims=tuple(0 if has_axis else None for has_axis in stacked),
    )(*leaves)
    rows = [
        plain(*(p[t] if s else p for p, s in zip(leaves, stacked, strict=True)), geometry)
        for t in range(TASKS)
    ]
    theirs = torch.stack(rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert_each_same(derivatives(ours, leaves, 2), derivatives(theirs, leaves, 2), 1e-10)


@pytest.mark.parametrize("shape", [(3, 1, 6, 6), (3, 4, 1, 1), (1, 1, 1, 1)])
def test_one_channel_or_pixel_is_channels_last_by_its_strides(shape: tuple[int, ...]) -> None:
    geometry = Geometry(padding=(1, 1), channels_last=True)
    x, weight = normal(*shape), normal(4, shape[1], 3, 3, seed=1)
    output = convolve(x, weight, None, geometry)
    assert output.permute(0, 2, 3, 1).is_contiguous()
    arranged = geometry.arrange(x)
    assert torch.equal(arranged, x)
    assert arranged.stride() == (shape[1] * shape[2] * shape[3], 1, shape[3] * shape[1], shape[1])


def test_no_gradient_that_nobody_reads() -> None:
    x = normal(2, 3, 4, 4, seed=0).detach()
    weight, bias = normal(5, 3, 3, 3, seed=1).requires_grad_(), normal(5, seed=2).requires_grad_()
    output = convolve(x, weight, bias, Geometry())
    with torch.profiler.profile() as profile:
        torch.autograd.grad(output.sum(), (weight, bias))
    names = {event.key for event in profile.key_averages()}
    assert "_WeightGradient" in names
    assert "_InputGradient" not in names
