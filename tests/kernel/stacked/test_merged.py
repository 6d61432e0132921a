"""Tails on the images of all tasks at once, against a plain loop over tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from fewshot_blo.backbones import (
    Adapts,
    Backbone,
    Preprocessing,
    Split,
    choose_parameters,
    split_network,
)
from fewshot_blo.backbones.layers import prepared
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import TailHead
from fewshot_blo.kernel.stacked.merged import MergedForward
from fewshot_blo.kernel.stacked.task_products import convolution, product

IMAGE, TASKS, IMAGES = torch.Size((3, 8, 8)), 3, 4
ADAPTS: tuple[Adapts, ...] = ("last_blocks", "bias", "norms", "low_rank", "all")


class Squeeze(nn.Module):
    """Channels scaled by what their means say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.one, self.two = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.two(F.silu(self.one(self.pool(x)))))


class Inverted(nn.Module):
    """A residual block with a depthwise convolution, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(8, 36, 1, bias=False), nn.BatchNorm2d(36), nn.Hardswish()
        )
        self.depth = nn.Sequential(
            nn.Conv2d(36, 36, 5, 1, 2, groups=36), nn.BatchNorm2d(36), Squeeze(36), nn.SiLU()
        )
        self.shrink = nn.Sequential(nn.Conv2d(36, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.shrink(self.depth(self.expand(x)))
        return output


class Tokens(nn.Module):
    """Attention with a learned token and a norm of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2) + self.token
        normed = self.norm(tokens)
        output: Tensor = self.last(tokens + self.attention(normed, normed, normed)[0])
        return output


def make_backbone() -> Backbone:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    middle = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    network = nn.Sequential(stem, Inverted(), middle, Tokens())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return Backbone(prepared(network), Preprocessing(8)).double()


def cut(adapts: Adapts, blocks: int) -> Split:
    network, names = choose_parameters(make_backbone(), adapts, blocks=blocks, rank=2)
    return split_network(network.requires_grad_(False), names, IMAGE)


def values(split: Split) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters and features of each task."""
    torch.manual_seed(1)
    given = dict(split.tail.named_parameters())
    params = {
        n: given[n] + 0.3 * torch.randn(TASKS, *given[n].shape).double() for n in split.adapted
    }
    with torch.no_grad():
        features = split.trunk(torch.rand(TASKS * IMAGES, *IMAGE).double())
    return params, features.unflatten(0, (TASKS, IMAGES))


def in_a_loop(split: Split, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """The tail itself, called for one task after another."""
    own = ({n: p[t] for n, p in params.items()} for t in range(TASKS))
    return torch.stack([functional_call(split.tail, p, (x[t],)) for t, p in enumerate(own)])


def derivatives(
    forward: Callable[[dict[str, Tensor], Tensor], Tensor], params: dict[str, Tensor], x: Tensor
) -> list[Tensor]:
    """Output, gradients, and gradients of the gradients' size; also with respect to x."""
    leaves = {n: p.detach().requires_grad_() for n, p in {**params, "x": x}.items()}
    own = {n: p for n, p in leaves.items() if n != "x"}
    output = forward(own, leaves["x"])
    first = torch.autograd.grad(output.square().sum(), list(own.values()), create_graph=True)
    total = torch.stack([g.square().sum() for g in first]).sum()
    second = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return [output, *first, *second]


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("adapts", ADAPTS)
def test_values_and_both_derivatives_equal_a_plain_loop(adapts: Adapts, blocks: int) -> None:
    split = cut(adapts, blocks)
    assert isinstance(split.tail, fx.GraphModule)
    merged = MergedForward(split.tail, split.adapted)
    params, x = values(split)
    ours = derivatives(lambda p, x: merged(p, {}, x, running=True), params, x)
    plain = derivatives(lambda p, x: in_a_loop(split, p, x), params, x)
    for a, b in zip(ours, plain, strict=True):
        difference = (a - b).detach().abs().max()
        assert float(difference) <= 1e-10 * max(1.0, float(b.detach().abs().max()))


def test_frozen_layers_run_once_for_all_tasks() -> None:
    """And so does each product with parameters of tasks: no layer is called task by task."""
    split = cut("low_rank", 0)
    assert isinstance(split.tail, fx.GraphModule)
    merged = MergedForward(split.tail, split.adapted)
    params, x = values(split)
    calls = {"conv2d": 0, "vmap": 0}

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function in (torch.conv2d, F.conv2d):
                calls["conv2d"] += 1
                assert len(args[0]) == TASKS * IMAGES
            return function(*args, **(kwargs or {}))

    with Count(), torch.no_grad():
        merged(params, {}, x)
    assert 0 < calls["conv2d"] <= 8


def test_norms_and_updates_are_part_of_products() -> None:
    split = cut("low_rank", 0)
    assert isinstance(split.tail, fx.GraphModule)
    merged = MergedForward(split.tail, split.adapted)
    left = [n for n in merged.order if n.target is F.batch_norm and n not in merged.sums]
    assert not left
    assert sum(found.norm is not None for found in merged.sums.values()) == 4


def test_shared_parameters_are_taken_from_what_is_given() -> None:
    split = cut("low_rank", 0)
    assert isinstance(split.tail, fx.GraphModule)
    merged = MergedForward(split.tail, split.adapted)
    params, x = values(split)
    rest = {n: p for n, p in split.tail.named_parameters() if n not in params}
    shared = {n: p.detach() + 0.1 for n, p in rest.items()}
    ours = merged(params, shared, x, running=True)
    stacked = {n: p.expand(TASKS, *p.shape) for n, p in shared.items()}
    torch.testing.assert_close(ours, in_a_loop(split, {**params, **stacked}, x))


def test_a_hook_of_a_layer_is_called() -> None:
    split = cut("last_blocks", 2)
    assert isinstance(split.tail, fx.GraphModule)
    convolutions = [m for m in split.tail.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    seen: list[nn.Module] = []
    for layer in convolutions:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(module))
    merged = MergedForward(split.tail, split.adapted)
    params, x = values(split)
    ours = merged(params, {}, x, running=True)
    assert len(seen) >= len(convolutions)
    torch.testing.assert_close(ours, in_a_loop(split, params, x))


def test_a_replaced_forward_of_a_layer_is_refused() -> None:
    split = cut("last_blocks", 2)
    assert isinstance(split.tail, fx.GraphModule)
    layer = next(m for m in split.tail.modules() if isinstance(m, nn.Linear))
    own = layer.forward
    layer.forward = lambda input: 2 * own(input)  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match="has a forward that was assigned to the instance"):
        MergedForward(split.tail, split.adapted)


class Meets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(192, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        output: Tensor = self.last(x - x.mean(0))
        return output


def test_images_that_meet_are_refused() -> None:
    network = Meets().double()
    split = split_network(network, ["first.weight"], IMAGE)
    assert isinstance(split.tail, fx.GraphModule)
    with pytest.raises(ConfigurationError, match="'mean' mixes images"):
        TailHead(split.tail, split.adapted, features=4, backend="merged")


def test_a_tail_that_is_not_traced_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a Linear in float32 cannot be merged"):
        TailHead(nn.Linear(3, 4), ["weight"], features=4, backend="merged")


@pytest.mark.parametrize("columns", [2, 20])
def test_products_have_exact_derivatives(columns: int) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 18, 3).double(), torch.randn(2, 3, columns).double()
    a.requires_grad_()
    b.requires_grad_()
    torch.testing.assert_close(product(a, b), a @ b)
    assert torch.autograd.gradcheck(product, (a, b))
    assert torch.autograd.gradgradcheck(product, (a, b))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(30, 3, 3, 2, 1, dilation=2),
        nn.Conv2d(30, 3, 3, padding="same"),
        nn.Conv2d(30, 5, 1, 2),
        nn.Conv2d(30, 40, 1),
    ],
)
def test_convolutions_of_tasks_equal_one_after_another(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    x = torch.randn(TASKS * 2, 30, 7, 6).double()
    weight = torch.randn(TASKS, *layer.weight.shape).double()
    bias = torch.randn(TASKS, layer.out_channels).double()
    ours = convolution(layer, x, weight, bias, TASKS)
    where: Any = layer.stride, layer.padding, layer.dilation  # Padding has numbers or a word.
    plain = [F.conv2d(x[2 * t : 2 * t + 2], weight[t], bias[t], *where) for t in range(TASKS)]
    torch.testing.assert_close(ours, torch.cat(plain))


@pytest.mark.parametrize("padding", [0, 2, 3])
def test_depthwise_convolutions_have_exact_derivatives(padding: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 3, (3, 2), 1, (padding, 0), dilation=2, groups=3).double()
    layer.requires_grad_(False)
    x = torch.randn(2, 3, 6, 5).double().requires_grad_()

    def ours(x: Tensor) -> Tensor:
        return convolution(layer, x, layer.weight, layer.bias, 1)

    torch.testing.assert_close(ours(x), layer(x))
    assert torch.autograd.gradcheck(ours, (x,))
    assert torch.autograd.gradgradcheck(lambda x: ours(x).square(), (x,))
