"""What adapts in a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewshot_blo.backbones import choose_parameters, load_backbone
from fewshot_blo.backbones.layers import Attention, FrozenBatchNorm, prepared
from fewshot_blo.backbones.low_rank import LowRank, with_low_rank
from fewshot_blo.backbones.parameters import Adapts, block_names
from fewshot_blo.errors import ConfigurationError


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return load_backbone("torchvision:resnet18", pretrained=False, size=32)


def test_blocks_are_members_of_sequences(resnet: nn.Module) -> None:
    names = block_names(resnet)
    assert names[:3] == ["body.conv1", "body.bn1", "body.layer1.0"]
    assert names[-1] == "body.layer4.1"
    vit = load_backbone("torchvision:vit_b_16", pretrained=False)
    assert block_names(vit)[-2:] == ["body.encoder.layers.encoder_layer_11", "body.encoder.ln"]


@pytest.mark.parametrize(
    ("adapts", "settings", "count", "some"),
    [
        ("head", {}, 0, None),
        ("last_blocks", {}, 6, "body.layer4.1.conv2.weight"),
        ("last_blocks", {"blocks": 2}, 15, "body.layer4.0.conv1.weight"),
        ("bias", {}, 20, "body.bn1.bias"),
        ("bias", {"blocks": 1}, 2, "body.layer4.1.bn2.bias"),
        ("norms", {}, 40, "body.bn1.weight"),
        ("all", {}, 60, "body.conv1.weight"),
        ("low_rank", {"blocks": 1, "rank": 2}, 4, "body.layer4.1.conv1.down.weight"),
    ],
)
def test_choices(
    resnet: nn.Module, adapts: Adapts, settings: dict[str, int], count: int, some: str | None
) -> None:
    network, names = choose_parameters(resnet, adapts, **settings)
    assert len(names) == len(set(names)) == count
    assert set(names) <= {name for name, _ in network.named_parameters()}
    assert some is None or some in names
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images), resnet(images))


def test_the_last_block_takes_the_norm_behind_it_along() -> None:
    vit = load_backbone("torchvision:vit_b_16", pretrained=False)
    _, names = choose_parameters(vit, "last_blocks")
    assert {name.split(".")[2] for name in names if "encoder_layer" in name} == {"layers"}
    assert "body.encoder.ln.weight" in names
    assert not any("encoder_layer_10" in name for name in names)


@pytest.mark.parametrize(
    ("adapts", "settings", "match"),
    [
        ("last_blocks", {"blocks": 99}, "blocks is 99: it must be at most 9"),
        ("all", {"blocks": -1}, "blocks is -1"),
        ("low_rank", {"rank": 0}, "rank is 0"),
        ("low_rank", {"rank": 9999}, "no layer whose name begins"),
    ],
)
def test_choices_that_make_no_sense(
    resnet: nn.Module, adapts: Adapts, settings: dict[str, int], match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        choose_parameters(resnet, adapts, **settings)


def test_nothing_left_to_adapt() -> None:
    with pytest.raises(ConfigurationError, match="no parameters for 'norms'"):
        choose_parameters(nn.Linear(3, 3), "norms")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_low_rank_updates_equal_dense_ones(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    if kind == "linear":
        layer: nn.Module = nn.Linear(6, 8, bias=bias).double()
        x = torch.randn(3, 6).double()
    else:
        layer = nn.Conv2d(6, 8, 3, 2, 1, dilation=2, bias=bias).double()
        x = torch.randn(3, 6, 9, 9).double()
    updated = LowRank(layer, 2)  # type: ignore[arg-type]
    torch.testing.assert_close(updated(x), layer(x))
    nn.init.normal_(updated.up.weight)  # type: ignore[arg-type]
    dense = prepared(layer)
    dense.weight.data = updated.weight.detach()
    torch.testing.assert_close(updated(x), dense(x))
    assert updated.bias is layer.bias


def test_grouped_and_small_layers_get_no_update_and_the_original_stays() -> None:
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 3, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 8)
    )
    changed, names = with_low_rank(network, 3)
    assert [type(layer) for layer in changed] == [nn.Conv2d, nn.Conv2d, LowRank, LowRank]  # type: ignore[attr-defined]
    assert names == ["2.down.weight", "2.up.weight", "3.down.weight", "3.up.weight"]
    assert not any(isinstance(layer, LowRank) for layer in network)
    again, _ = with_low_rank(network, 3)
    assert torch.equal(again[2].down.weight, changed[2].down.weight)  # type: ignore[index]


@pytest.mark.parametrize("affine", [True, False])
def test_frozen_norms_never_look_at_the_batch(affine: bool) -> None:
    norm = nn.BatchNorm2d(4, affine=affine).double()
    with torch.no_grad():
        norm(torch.randn(9, 4, 5, 5).double() * 3 + 1)
    x = torch.randn(2, 4, 5, 5).double()
    frozen = FrozenBatchNorm(norm).train()
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    assert {n for n, _ in frozen.named_parameters()} == ({"weight", "bias"} if affine else set())


def test_hardsigmoid_has_second_derivatives() -> None:
    x = torch.linspace(-4, 4, 17).double().requires_grad_()
    ours = prepared(nn.Sequential(nn.Hardsigmoid()))
    torch.testing.assert_close(ours(x), nn.Hardsigmoid()(x))
    assert torch.autograd.gradgradcheck(lambda y: ours(y).square(), x + 0.1)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_equals_the_fused_one_and_has_second_derivatives(batch_first: bool) -> None:
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(8, 2, batch_first=batch_first).double().eval()
    ours, x = Attention(fused), torch.randn(3, 5, 8).double().requires_grad_()
    torch.testing.assert_close(ours(x, x, x)[0], fused(x, x, x, need_weights=False)[0])
    assert torch.autograd.gradgradcheck(lambda y: ours(y, y, y)[0], x[:1, :2])
    with pytest.raises(ConfigurationError, match="only self-attention"):
        ours(x, x.clone(), x)
    with pytest.raises(ConfigurationError, match="only self-attention"):
        ours(x, x, x, attn_mask=torch.zeros(5, 5))
