"""A convolution and its derivatives against PyTorch's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from oracles import assert_each_same, derivatives
from torch import Tensor
from torch.func import vmap
from triton_asked import ASKED, DEVICE, use_small_tiles

from fewshot_blo.kernel.stacked import convolution_algorithms, convolution_choice
from fewshot_blo.kernel.stacked.convolution import convolve
from fewshot_blo.kernel.stacked.convolution_algorithms import (
    Algorithm,
    Geometry,
    Kind,
    fits,
    grouped,
)

GEOMETRIES = {
    "padded": Geometry(padding=(1, 1)),
    "strided": Geometry(stride=(2, 1), padding=(1, 2)),
    "dilated": Geometry(dilation=(1, 2), padding=(0, 2)),
    "grouped": Geometry(padding=(1, 1), groups=2),
    "channels-last": Geometry(padding=(1, 1), channels_last=True),
    "channels-last, wide": Geometry(padding=(3, 2), dilation=(2, 1), channels_last=True),
    "channels-last, strided": Geometry(stride=(2, 3), padding=(1, 0), channels_last=True),
    "channels-last, grouped": Geometry(groups=2, stride=(2, 2), channels_last=True),
}
TASKS = 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal entries in float64 on the kernels' device."""
    return oracles.normal(*shape, seed=seed).to(DEVICE)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    g = geometry
    return F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)


def only(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes by one algorithm all that it can compute, and the rest by PyTorch's own."""

    def choose(kind: Kind, *arguments: Any) -> Algorithm:
        return algorithm if fits(algorithm, kind, arguments[-1]) else "grouped"

    monkeypatch.setattr(convolution_choice, "choose", choose)


ASKED_ALGORITHMS: tuple[Algorithm, ...] = (
    ("triton",) if ASKED != "native" else ("grouped", "im2col", "windows")
)


def cases(algorithms: Iterable[Algorithm]) -> list[Any]:
    """Each algorithm with each geometry that it fits."""
    return [
        pytest.param(algorithm, geometry, id=f"{algorithm}, {name}")
        for algorithm in algorithms
        for name, geometry in GEOMETRIES.items()
        if fits(algorithm, "output", geometry)
    ]


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize(("algorithm", "geometry"), cases(ASKED_ALGORITHMS))
def test_equals_torch_to_third_order(
    geometry: Geometry, channels: int, algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(algorithm, monkeypatch)
    x = normal(2, channels, 5, 6, seed=0).requires_grad_()
    weight = normal(4, channels // geometry.groups, 3, 2, seed=1).requires_grad_()
    bias = normal(4, seed=2).requires_grad_()
    leaves = (x, weight, bias)
    ours, theirs = convolve(*leaves, geometry), plain(*leaves, geometry)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert_each_same(derivatives(ours, leaves, 3), derivatives(theirs, leaves, 3), 1e-10)


@pytest.mark.parametrize("channels", [2, 19])
@pytest.mark.parametrize(
    ("algorithm", "geometry"), cases(a for a in ASKED_ALGORITHMS if a != "im2col")
)
def test_tasks_one_after_another_equal_a_loop(
    geometry: Geometry, channels: int, algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(algorithm, monkeypatch)
    geometry = replace(geometry, tasks=TASKS, channels_last=True)
    check_tasks(geometry, 2, channels * geometry.groups, 4, (5, 6))


@pytest.mark.parametrize("algorithm", ["triton"] if ASKED != "native" else ["grouped", "windows"])
def test_tasks_of_many_pixels_and_channels(
    algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(algorithm, monkeypatch)
    use_small_tiles(monkeypatch)
    check_tasks(Geometry(padding=(1, 1), tasks=TASKS, channels_last=True), 2, 5, 70, (9, 10))


def check_tasks(
    geometry: Geometry, images: int, channels: int, outputs: int, size: tuple[int, int]
) -> None:
    x = normal(TASKS, images, channels, *size).requires_grad_()
    weight = normal(TASKS, outputs, channels // geometry.groups, 3, 2, seed=1).requires_grad_()
    bias = normal(TASKS, outputs, seed=2).requires_grad_()
    leaves = (x, weight, bias)
    ours = convolve(x.flatten(0, 1), weight.flatten(0, 1), bias.flatten(), geometry)
    assert ours.permute(0, 2, 3, 1).is_contiguous()
    theirs = torch.cat([plain(x[t], weight[t], bias[t], geometry) for t in range(TASKS)])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert_each_same(derivatives(ours, leaves, 2), derivatives(theirs, leaves, 2), 1e-10)


@pytest.mark.parametrize("tasks", [1, TASKS])
@pytest.mark.parametrize("limit", ["TOO_MANY", "WINDOW_ENTRIES"])
def test_large_products_equal_whole_ones(
    limit: str, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = Geometry(padding=(1, 1), channels_last=True, tasks=tasks)
    x = normal(tasks, 5, 2, 4, 4).requires_grad_()
    weight = normal(tasks, 3, 2, 3, 3, seed=1).requires_grad_()
    leaves = (x, weight)
    theirs = torch.cat([plain(x[t], weight[t], None, geometry) for t in range(tasks)])
    only("windows", monkeypatch)
    module = convolution_choice if limit == "TOO_MANY" else convolution_algorithms
    monkeypatch.setattr(module, limit, 100)
    ours = convolve(x.flatten(0, 1), weight.flatten(0, 1), None, geometry)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert_each_same(derivatives(ours, leaves, 2), derivatives(theirs, leaves, 2), 1e-10)


def test_what_fails_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def seconds(function: Callable[[], Tensor], device: torch.device) -> float:
        del device
        tried.append(len(tried))
        function()
        return 1.0 / len(tried)

    def fail(*_: Any) -> Tensor:
        raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(convolution_choice, "device_seconds", seconds)
    arguments = normal(2, 3, 4, 4), normal(4, 3, 3, 3), None, Geometry(channels_last=True)
    algorithms = {"grouped": grouped, "im2col": grouped, "windows": fail}
    monkeypatch.setattr(convolution_choice, "ALGORITHMS", algorithms)
    assert convolution_choice._fastest("output", *arguments) == "im2col"
    assert len(tried) == 3
    monkeypatch.setattr(convolution_choice, "ALGORITHMS", {"grouped": fail, "windows": fail})
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        convolution_choice._fastest("output", *arguments)


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
        lambda x, weight, bias: convolve(x, weight, bias, geometry),
        in_dims=tuple(0 if has_axis else None for has_axis in stacked),
    )(*leaves)
    rows = []
    for t in range(TASKS):
        x, weight, bias = (p[t] if s else p for p, s in zip(leaves, stacked, strict=True))
        rows.append(plain(x, weight, bias, geometry))
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
