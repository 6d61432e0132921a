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
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.kernel.interception import following_norms, kernel_forward
from fewshot_blo.kernel.layers import ForwardContext, forward_context
from fewshot_blo.networks import NARROW, WIDE, Norm, ResNet12, classifier
from fewshot_blo.networks.resnet12 import DropBlock
from fewshot_blo.problems import Initialization, NormMode
from fewshot_blo.training.step import dropout_keys, hypergradient

TINY = (4, 4, 8, 8)


def make(**options: Any) -> ResNet12:
    torch.manual_seed(0)
    return ResNet12(**{"channels": 1, "widths": TINY, **options}).double()


def masks_of(layer: nn.Module, shape: tuple[int, ...], key: int = 0) -> Tensor:
    """What a layer with a key makes of ones."""
    with forward_context(ForwardContext(key=torch.tensor(key))):
        return layer(torch.ones(shape, dtype=torch.float64))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("widths", "total"), [(WIDE, 12_424_320), (NARROW, 7_996_800)])
def test_has_the_parameters_of_the_literature(
    widths: tuple[int, int, int, int], total: int
) -> None:
    with torch.device("meta"):
        network = ResNet12(widths=widths)
    # A block: three 3x3 convolutions and one of 1x1, none with bias, and four batch norms.
    sizes = [
        (9 * before + 18 * width + before) * width + 8 * width
        for before, width in zip((3, *widths), widths, strict=False)
    ]
    assert sum(p.numel() for p in network.parameters()) == sum(sizes) == total


@pytest.mark.parametrize("size", [16, 32, 84])
def test_shapes(size: int) -> None:
    encoder = ResNet12(widths=TINY)
    images = torch.rand(2, 3, size, size)
    assert encoder(images).shape == (2, encoder.features(size)) == (2, 8)
    halved = [size := size // 2 for _ in range(4)]
    sides = []
    for block in encoder.blocks:
        images = block(images)
        sides.append(images.shape[-1])
    assert sides == halved


def test_equals_its_description() -> None:
    """Plain calls of PyTorch's functions, without dropping."""
    network, x = make(channels=3, drop_block=2).eval(), torch.rand(5, 3, 32, 32).double()

    def layer(block: nn.Module, name: str, number: str, x: Tensor) -> Tensor:
        branch = dict(block.named_children())[name]
        layers = dict(branch.named_children())
        weight = layers[f"convolution{number}"].weight
        assert isinstance(weight, Tensor)
        norm = layers[f"norm{number}"]
        assert isinstance(norm, nn.BatchNorm2d)
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        return F.batch_norm(x, None, None, norm.weight, norm.bias, True)

    y = x
    for block in network.blocks:
        out = y
        for number in "123":
            out = layer(block, "residual", number, out)
            out = F.leaky_relu(out, 0.1) if number != "3" else out
        total = out + layer(block, "shortcut", "", y)
        y = F.max_pool2d(F.leaky_relu(total, 0.1), 2)
    with kernel_forward(ForwardContext(), following_norms(network)):
        torch.testing.assert_close(network(x), y.mean((2, 3)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["transductive", "support"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_second_order_gradients_equal_a_plain_loop(norm: Norm, mode: NormMode) -> None:
    problem = Initialization(classifier(make(norm=norm), 8, 3).double())
    strategy, batch = Unroll(InnerSteps(2, SGD(0.1))), make_batch()
    network = plain_network(problem.network)
    losses, gradient = plain_mean(
        strategy,
        [
            plain_initialization(
                network, problem.outer, task, mode, prox=0.0, adapted=problem.adapted
            )
            for task in single_tasks(batch)
        ],
    )
    for backend in ("batched", "loop"):
        problem.backend = backend
        step = hypergradient(problem, strategy, strategy.init(), batch, norm=mode, chunk=2)
        assert_same({"F": step.outer_loss}, {"F": losses})
        assert_same(step.gradient, gradient)


@pytest.mark.slow
def test_dropping_depends_on_the_task_alone() -> None:
    network = classifier(make(drop_block=2, drop_rate=0.3), 8, 3).double()
    strategy, batch = Unroll(InnerSteps(2, SGD(0.1))), make_batch()

    def step(backend: Any, chunk: int, seed: int = 0) -> dict[str, Tensor]:
        problem = Initialization(network, backend=backend)
        keys = dropout_keys(batch, seed, 0)
        found = hypergradient(problem, strategy, strategy.init(), batch, chunk=chunk, keys=keys)
        return dict(found.gradient)

    expected = step("loop", 1)
    for backend, chunk in (("batched", 3), ("batched", 2), ("loop", 3)):
        assert_same(step(backend, chunk), expected)
    other = step("loop", 1, seed=1)
    assert not torch.allclose(other["head.weight"], expected["head.weight"], rtol=1e-3)


def test_which_blocks_drop_what() -> None:
    network = ResNet12(widths=TINY, drop_block=5, drop_rate=0.2)
    layers = [m for m in network.modules() if isinstance(m, nn.Dropout | DropBlock)]
    assert [type(layer) for layer in layers] == [nn.Dropout, nn.Dropout, DropBlock, DropBlock]
    assert not any(isinstance(m, nn.Dropout | DropBlock) for m in ResNet12(widths=TINY).modules())


@pytest.mark.parametrize(("size", "side"), [(1, 6), (2, 7), (3, 10), (5, 10)])
def test_squares_are_dropped(size: int, side: int) -> None:
    dropped = masks_of(DropBlock(size, 0.1), (20, 30, side, side)) == 0
    # Every dropped entry lies in a dropped square, and squares occur.
    windows = dropped.unfold(2, size, 1).unfold(3, size, 1).all(-1).all(-1)
    covered = torch.zeros_like(dropped)
    for y in range(size):
        for x in range(size):
            covered[:, :, y : side - size + 1 + y, x : side - size + 1 + x] |= windows
    assert torch.equal(covered, dropped)
    # The share is the rate but for overlaps, which equation 1 leaves out.
    assert 0.08 < float(dropped.float().mean()) < 0.105


@pytest.mark.parametrize(("size", "side"), [(1, 6), (3, 10), (5, 5), (7, 4)])
def test_the_mean_weight_stays_one(size: int, side: int) -> None:
    out = masks_of(DropBlock(size, 0.3), (8, 40, side, side))
    torch.testing.assert_close(out.mean((1, 2, 3)), torch.ones(8).double(), rtol=1e-6, atol=0)
    # Alike entries of an image: none is favoured, over many draws.
    mean = torch.cat([masks_of(DropBlock(size, 0.3), (50, 40, side, side), k) for k in range(3)])
    mean = mean.mean((0, 1))
    torch.testing.assert_close(mean, mean.flip(0, 1), rtol=0.1, atol=0)
    torch.testing.assert_close(mean, mean.mT, rtol=0.1, atol=0)


def test_a_map_smaller_than_a_square_loses_whole_channels() -> None:
    dropped = masks_of(DropBlock(5, 0.25), (40, 50, 3, 4)) == 0
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.05)
    columns = dropped.all(2)
    assert torch.equal(columns, dropped.any(2))


def test_an_image_depends_on_itself_alone() -> None:
    layer, x = DropBlock(2, 0.4), torch.rand(6, 3, 4, 4)
    with kernel_forward(ForwardContext(key=torch.tensor(5)), []):
        out = layer(x)
    with kernel_forward(ForwardContext(key=torch.tensor(5)), []):
        torch.testing.assert_close(layer(x[:3]), out[:3])


def test_evaluation_drops_nothing() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(DropBlock(2, 0.5).eval()(x), x)
    assert torch.equal(DropBlock(2, 0.0)(x), x)
    assert torch.isfinite(masks_of(DropBlock(2, 0.99), (50, 1, 2, 2))).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"drop_block": -1}, "drop_block is -1"),
        ({"drop_block": 2, "drop_rate": 1.0}, r"drop_rate is 1\.0: it must be in \[0, 1\)"),
        ({"norm": "group"}, "4 channels.*multiple of 8"),
    ],
)
def test_settings_that_do_not_fit(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        ResNet12(**{"widths": TINY, **options})
    with pytest.raises(ConfigurationError, match="size is 0"):
        DropBlock(0, 0.1)
    with pytest.raises(ConfigurationError, match=r"rate is -0\.1"):
        DropBlock(2, -0.1)


def test_small_images_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"15x20 is too small.*16x16"):
        ResNet12(widths=TINY)(torch.rand(1, 3, 15, 20))
