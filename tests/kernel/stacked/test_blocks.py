"""Blocks with tasks one after another, as on a CUDA device, against a loop over tasks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import oracles
import pytest
import torch
import torch.nn.functional as F
from oracles import assert_each_same, derivatives
from test_convolution import only
from torch import Tensor
from torch.func import vmap
from triton_asked import ASKED, DEVICE, use_asked_kernels

from fewshot_blo.kernel.plain import plain_operations
from fewshot_blo.kernel.stacked import blocks
from fewshot_blo.kernel.stacked.blocks import Block, Blocks
from fewshot_blo.kernel.stacked.convolution_algorithms import Geometry
from fewshot_blo.kernel.stacked.fused import Then, fused_kernels, is_fused
from fewshot_blo.kernel.stacked.fused.device import FOR_DEVICE, kernels_for

TASKS, IMAGES, CHANNELS = 3, 4, (2, 3, 4)
EPS = 1e-3


@pytest.fixture
def _after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    use_asked_kernels(monkeypatch)
    if kernels_for(DEVICE).reason:
        pytest.skip(f"no fused kernels: {kernels_for(DEVICE).reason}")
    monkeypatch.setattr(blocks, "BESIDE", frozenset())
    # On the host the interpreter's convolutions are slow; test_convolution has them.
    only("triton" if ASKED == "cuda" else "windows", monkeypatch)


def chain(*, running: bool = False, first: int | None = None) -> Blocks:
    """Two blocks, the second without pooling."""
    return Blocks(
        (
            Block(Geometry(padding=(1, 1)), EPS, Then(0.0, 2), running, first),
            Block(Geometry(stride=(2, 1), padding=(1, 0)), EPS, Then(0.1, 1), running, first),
        )
    )


def tensors_for(own: Sequence[bool]) -> list[Tensor]:
    """Weight, bias, γ, β, mean and variance of two blocks; stacked where ``own``."""
    tensors = []
    for number, (before, after) in enumerate(itertools.pairwise(CHANNELS)):
        for position, shape in enumerate([(after, before, 3, 3), *[(after,)] * 5]):
            axis = (TASKS,) if own[position] else ()
            p = oracles.normal(*axis, *shape, seed=10 * number + position).to(DEVICE)
            tensors.append(p.abs() if position == 5 else p)
    return tensors


def loop(chain: Blocks, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Of one task."""
    for number, block in enumerate(chain.blocks):
        weight, bias, gamma, beta, mean, variance = tensors[6 * number : 6 * number + 6]
        x = F.conv2d(x, weight, bias, block.geometry.stride, block.geometry.padding)
        x = x.float() if x.dtype == torch.bfloat16 else x
        if not block.running:
            variance, mean = torch.var_mean(x[: block.first], (0, 2, 3), correction=0)
        scale = gamma / (variance + block.eps).sqrt()
        x = (x - mean.reshape(-1, 1, 1)) * scale.reshape(-1, 1, 1) + beta.reshape(-1, 1, 1)
        x = F.leaky_relu(x, block.then.slope)
        x = F.max_pool2d(x, 2) if block.then.pool == 2 else x
    return x


OWN = {
    "all": (True, True, True, True, False, False),
    "norms": (False, False, True, True, False, False),
    "biases": (False, True, False, False, False, False),
    "none": (False,) * 6,
}


@pytest.mark.usefixtures("_after_another")
@pytest.mark.parametrize("own", OWN.values(), ids=OWN.keys())
@pytest.mark.parametrize(("running", "first"), [(False, None), (False, 2), (True, None)])
def test_tasks_equal_a_loop(own: tuple[bool, ...], running: bool, first: int | None) -> None:
    x = oracles.normal(TASKS, IMAGES, CHANNELS[0], 7, 6).to(DEVICE).requires_grad_()
    tensors = tensors_for(own)
    stacked = own * 2
    leaves = [x, *(p.requires_grad_() for i, p in enumerate(tensors) if i % 6 < 4)]
    network = chain(running=running, first=first)
    dims = (0, *(0 if s else None for s in stacked))
    ours = vmap(lambda x, *p: network(x, p), in_dims=dims)(x, *tensors)
    rows = []
    for t in range(TASKS):
        own_tensors = [p[t] if s else p for p, s in zip(tensors, stacked, strict=True)]
        rows.append(loop(network, x[t], own_tensors))
    theirs = torch.stack(rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert_each_same(derivatives(ours, leaves, 2), derivatives(theirs, leaves, 2), scale=1)


@pytest.mark.skipif(ASKED == "native", reason="the host's kernels are not used under autocast")
@pytest.mark.usefixtures("_after_another")
def test_bfloat16_is_of_products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    only("windows", monkeypatch)  # Triton's interpreter has no products of bfloat16.
    x = oracles.normal(TASKS, IMAGES, CHANNELS[0], 17, 14).to(DEVICE)
    tensors = tensors_for(OWN["all"])
    # Without ReLUs and pooling, which choose otherwise where they meet rounded numbers.
    network = Blocks(tuple(replace(block, then=Then()) for block in chain().blocks))
    dims = (0, *(0 if s else None for s in OWN["all"] * 2))

    def one_by_one(x: Tensor, *tensors: Tensor) -> Tensor:
        own = [
            p.unbind() if d == 0 else [p] * TASKS for p, d in zip(tensors, dims[1:], strict=True)
        ]
        return torch.stack([loop(network, x, p) for x, *p in zip(x, *own, strict=True)])

    batched = vmap(lambda x, *p: network(x, p), in_dims=dims)
    results = []
    for function, dtype in [
        (one_by_one, torch.float64),
        (one_by_one, torch.float32),
        (batched, torch.float32),
    ]:
        leaves = [p.to(dtype).requires_grad_() for p in (x, *tensors)]
        half = dtype == torch.float32
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half, cache_enabled=False):
            with fused_kernels(True):
                assert is_fused(leaves[0][0])
            output = function(*leaves)
        assert output.dtype == dtype
        chosen = [leaves[i] for i in (0, 1, 3, 4)]
        first = torch.autograd.grad(output.sin().sum(), chosen, create_graph=True)
        total = torch.stack([g.square().sum() for g in first]).sum()
        results.append([output, *first, *torch.autograd.grad(total, chosen)])
    for exact, theirs, ours in zip(*results, strict=True):
        error, layers = ((z - exact).norm() / exact.norm() for z in (ours, theirs))
        assert error <= 3 * layers


def test_a_cuda_device_is_fused_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FOR_DEVICE, "meta", FOR_DEVICE["cpu"])
    if kernels_for(DEVICE).reason:
        pytest.skip(f"no fused kernels: {kernels_for(DEVICE).reason}")
    host, other = (torch.empty(2, 3, 4, 4, device=name) for name in ("cpu", "meta"))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    assert (is_fused(host), is_fused(other)) == (True, False)
    for wanted in (True, False):
        with fused_kernels(wanted):
            assert (is_fused(host), is_fused(other)) == (wanted, wanted)
            with plain_operations():
                assert not is_fused(other)
    assert not is_fused(host[0])
