from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import (
    assert_same,
    make_batch,
    plain_initialization,
    plain_mean,
    plain_network,
    single_tasks,
)
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, Backend, InnerSteps
from fewshot_blo.kernel.layers import ForwardContext, forward_context
from fewshot_blo.networks import WideResNet, classifier
from fewshot_blo.problems import Initialization


def make(**options: Any) -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(**{"depth": 10, "widen": 1, **options}).double()


def test_has_the_parameters_of_its_description() -> None:
    with torch.device("meta"):
        network = WideResNet()
    total, before = 9 * 3 * 16, 16
    for width in (160, 320, 640):
        for _ in range(4):
            norms, convolutions = 2 * before + 2 * width, 9 * before * width + 9 * width * width
            total += norms + convolutions + (0 if before == width else before * width)
            before = width
    assert sum(p.numel() for p in network.parameters()) == total + 2 * before


@pytest.mark.parametrize(("size", "last"), [(32, 8), (84, 21)])
def test_shapes(size: int, last: int) -> None:
    encoder = WideResNet(depth=10, widen=1)
    images = torch.rand(2, 3, size, size)
    assert encoder(images).shape == (2, encoder.features(size)) == (2, 64)
    assert encoder.layers(images).shape == (2, 64, last, last)


def test_equals_its_description() -> None:
    """Plain calls of PyTorch's functions."""
    network, x = make(depth=16), torch.rand(5, 3, 16, 16).double()
    parameters = dict(network.named_parameters())

    def convolved(name: str, x: Tensor, stride: int) -> Tensor:
        weight = parameters[f"layers.{name}.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)

    def active(name: str, x: Tensor) -> Tensor:
        weight, bias = (parameters[f"layers.{name}.{kind}"] for kind in ("weight", "bias"))
        return F.relu(F.batch_norm(x, None, None, weight, bias, True))

    y = convolved("convolution", x, 1)
    for stage in (1, 2, 3):
        for block in (1, 2):
            name = f"stage{stage}_block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            inner = active(f"{name}.norm", y)
            # The first block keeps 16 filters, and so its image.
            changes = block == 1 and stage > 1
            shortcut = convolved(f"{name}.shortcut", inner, stride) if changes else y
            inner = convolved(f"{name}.residual.convolution1", inner, stride)
            inner = active(f"{name}.residual.norm", inner)
            y = shortcut + convolved(f"{name}.residual.convolution2", inner, 1)
    expected = active("norm", y).mean((2, 3))
    with forward_context(ForwardContext()):
        torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("backend", ["batched", "loop"])
def test_second_order_equals_a_plain_loop(backend: Backend) -> None:
    network: nn.Module = classifier(make(channels=1), 64, 3).double()
    problem = Initialization(network, backend=backend)
    batch, strategy = make_batch(), Unroll(InnerSteps(2, SGD(0.1)))
    plain = plain_network(problem.network)
    singles = [
        plain_initialization(
            plain, problem.outer, task, "transductive", prox=0.0, adapted=problem.adapted
        )
        for task in single_tasks(batch)
    ]
    losses, gradient = plain_mean(strategy, singles)
    bound = problem.bind(batch, "transductive")
    step = strategy.hypergradient(bound.bilevel, strategy.init())
    assert_same({"F": step.outer_loss}, {"F": losses})
    assert_same(step.gradient, gradient, 1e-9)


@pytest.mark.parametrize("depth", [4, 27])
def test_depths_that_do_not_exist(depth: int) -> None:
    with pytest.raises(ConfigurationError, match=f"depth is {depth}: it must be 6 n"):
        WideResNet(depth=depth)
