"""Networks of patches at image sizes other than that of their pretraining."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fewshot_blo.backbones import Backbone, load_backbone
from fewshot_blo.backbones.encoders import pretrained
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune import Source
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module


def timm_module() -> Any:
    """The library timm, which imports torchvision; the test is skipped without it."""
    torchvision_module()
    return pytest.importorskip("timm")


def positions(tensor: torch.Tensor, side: int) -> torch.Tensor:
    """Position embeddings ``[1, 1 + G*G, D]``, those of patches interpolated."""
    first, rest = tensor[:, :1], tensor[:, 1:]
    old = round(rest.shape[1] ** 0.5)
    grid = rest.transpose(1, 2).unflatten(2, (old, old))
    new = nn.functional.interpolate(grid, (side, side), mode="bicubic", antialias=True)
    return torch.cat([first, new.flatten(2).transpose(1, 2)], 1)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:vit_tiny_patch16_224", 128),
        ("timm:deit_tiny_patch16_224", 96),
        ("timm:swin_tiny_patch4_window7_224", 128),
        ("timm:xcit_nano_12_p16_224", 128),
        ("timm:cait_xxs24_224", 128),
        ("timm:resnet18", 128),
        ("torchvision:vit_b_16", 64),
        ("torchvision:swin_t", 96),
        ("torchvision:maxvit_t", 448),
        ("torchvision:resnet18", 70),
    ],
)
def test_another_size(name: str, size: int) -> None:
    if name.startswith("timm"):
        timm_module()
    backbone = load_backbone(name, pretrained=False, size=size)
    assert backbone.size == size
    assert backbone.features(torch.Size((3, 40, 30))) > 100


@pytest.mark.slow
def test_a_network_for_518_pixels_takes_224() -> None:
    timm_module()
    backbone = load_backbone("timm:vit_small_patch14_dinov2", pretrained=False, size=224)
    assert backbone.features(torch.Size((3, 40, 30))) == 384
    assert backbone.body.pos_embed.shape == (1, 1 + 16 * 16, 384)
    message = "patches of 14 x 14 pixels, so that it must be a multiple of 14; use 126 or 140"
    with pytest.raises(ConfigurationError, match=f"size is 128: .*{re.escape(message)}"):
        load_backbone("timm:vit_small_patch14_dinov2", pretrained=False, size=128)
    with pytest.raises(
        ConfigurationError, match=r"timm:nest_tiny cannot be built for images of 10"
    ):
        load_backbone("timm:nest_tiny", pretrained=False, size=10)
    with pytest.raises(ConfigurationError, match=r"of 16 x 16 .* use 16$"):
        load_backbone("torchvision:vit_b_16", pretrained=False, size=10)
    with pytest.raises(ConfigurationError, match=r"cannot be built for images of 100 x 100 .*224$"):
        load_backbone("torchvision:maxvit_t", pretrained=False, size=100)


def test_position_embeddings_of_a_file_are_interpolated(tmp_path: Path) -> None:
    timm = timm_module()
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    nn.init.normal_(network.pos_embed)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    loaded = load_backbone("timm:vit_tiny_patch16_224", weights=tmp_path / "w.pt", size=128)
    own = dict(loaded.body.named_parameters())
    expected = positions(network.pos_embed.detach(), 8)
    torch.testing.assert_close(own["pos_embed"].detach(), expected)
    torch.testing.assert_close(own["cls_token"], network.cls_token)


@pytest.mark.slow
def test_position_embeddings_of_torchvision(tmp_path: Path) -> None:
    network = torchvision_module().models.vit_b_16(weights=None)
    nn.init.normal_(network.encoder.pos_embedding)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    loaded = load_backbone("torchvision:vit_b_16", weights=tmp_path / "w.pt", size=448)
    found = dict(loaded.body.named_parameters())["encoder.pos_embedding"].detach()
    given = network.encoder.pos_embedding.detach()
    grid = given[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    # torchvision aligns the corners.
    grid = nn.functional.interpolate(grid, (28, 28), mode="bicubic", align_corners=True)
    torch.testing.assert_close(found[:, 1:], grid.flatten(2).transpose(1, 2))
    assert torch.equal(found[:, 0], given[:, 0])
    torch.testing.assert_close(
        dict(loaded.body.named_parameters())["conv_proj.weight"], network.conv_proj.weight
    )


def test_the_size_of_an_encoder_and_of_a_saved_classifier() -> None:
    timm_module()
    encoder = pretrained("timm:vit_tiny_patch16_224", size=64, trained=False)
    assert encoder(torch.rand(2, 3, 20, 20)).shape == (2, 192)
    source = Source("timm:vit_tiny_patch16_224")
    again = source.load(encoder.preprocess.settings, pretrained=False)
    again.body.load_state_dict(encoder.body.state_dict())


def test_a_size_that_is_no_square_is_told() -> None:
    timm_module()
    from timm.models import vision_transformer as models
    from timm.models._registry import register_model

    @register_model
    def vit_tall_for_a_test(**settings: object) -> nn.Module:
        cfg: Any = {"input_size": (3, 64, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        cfg |= {"interpolation": "bicubic", "crop_pct": 1.0, "num_classes": 10}
        network: Any = models.VisionTransformer(
            img_size=(64, 32), patch_size=16, embed_dim=32, depth=1, num_heads=2
        )
        network.pretrained_cfg = network.default_cfg = cfg
        return network  # type: ignore[no-any-return]

    name = "timm:vit_tall_for_a_test"
    with pytest.warns(UserWarning, match="trained on images of 64 x 32 pixels: .* to 32 x 32"):
        backbone = load_backbone(name, pretrained=False)
    assert backbone.features(torch.Size((3, 40, 30))) == 32
    assert load_backbone(name, pretrained=False, size=64).features(torch.Size((3, 9, 9))) == 32


def test_without_a_size() -> None:
    with pytest.raises(ConfigurationError, match="Conv2d has no default image size: set size to"):
        _ = Backbone(nn.Conv2d(3, 4, 3)).size


def test_transformers_of_another_size(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
    )
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    backbone = load_backbone(f"hf:{tmp_path}", size=48)
    x = torch.rand(2, 3, 48, 48)
    expected = model((x - 0.5) / 0.5, interpolate_pos_encoding=True).last_hidden_state.mean(1)
    torch.testing.assert_close(backbone(x), expected)
    with pytest.raises(ConfigurationError, match="multiple of 8; use 40 or 48"):
        load_backbone(f"hf:{tmp_path}", size=44)
