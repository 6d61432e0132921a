"""Backbones by name, and files of weights."""

from __future__ import annotations

import pickle
import sys
import types
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.backbones import Backbone, Preprocessing, load_backbone
from fewshot_blo.backbones.backbone import Pool
from fewshot_blo.backbones.weights import load_weights, read_weights
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

IMAGE = torch.Size((3, 40, 30))


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module: Any = types.ModuleType("own_networks")
    module.net, module.number = net, lambda: 3
    module.prepared = lambda: Backbone(net(), Preprocessing(16))
    module.pooled = lambda: Backbone(net(), Preprocessing(16), pool="maximum", views="mirrored")
    module.text = lambda: nn.Identity()
    monkeypatch.setitem(sys.modules, "own_networks", module)
    return module  # type: ignore[no-any-return]


def test_own_networks(own: types.ModuleType, tmp_path: Path) -> None:
    backbone = load_backbone("own_networks:net")
    assert backbone.features(IMAGE) == 4
    assert backbone.name == "own_networks:net"
    assert load_backbone("own_networks:prepared").preprocess.settings.size == 16
    source = net()
    torch.save(
        {"state_dict": {f"module.{n}": p for n, p in source.state_dict().items()}},
        tmp_path / "w.pt",
    )
    loaded = load_backbone("own_networks:net", weights=tmp_path / "w.pt", size=12)
    x = torch.rand(2, 3, 12, 12)
    torch.testing.assert_close(loaded(x), source(x).mean((2, 3)))


def test_a_backbone_of_your_own_keeps_its_pooling_and_views(own: types.ModuleType) -> None:
    torch.manual_seed(0)
    made = own.pooled()
    torch.manual_seed(0)
    backbone = load_backbone("own_networks:pooled")
    x = torch.rand(2, 3, 20, 20)
    assert torch.equal(backbone(x), made(x))
    other = load_backbone("own_networks:pooled", pool="first")
    assert (other.pool.pool, other.views.views) == ("first", "mirrored")


@pytest.mark.parametrize(
    ("pool", "count"), [("average", 4), ("maximum", 4), ("first", 4), ("flatten", 4 * 10 * 10)]
)
def test_pooling(own: types.ModuleType, pool: Pool, count: int) -> None:
    backbone = load_backbone("own_networks:net", size=12, pool=pool)
    maps = backbone.body(backbone.preprocess(images := torch.rand(2, 3, 20, 20)))
    features = backbone(images)
    assert features.shape == (2, count)
    expected = {
        "average": maps.mean((2, 3)),
        "maximum": maps.amax((2, 3)),
        "first": maps[:, :, 0, 0],
        "flatten": maps.flatten(1),
    }
    torch.testing.assert_close(features, expected[pool])


def test_preprocessing_of_grey_images_and_other_sizes() -> None:
    settings = Preprocessing(8, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0), "bicubic")
    backbone = Backbone(nn.Flatten(), settings)
    seen = backbone(torch.full((1, 1, 5, 9), 0.75)).reshape(3, 8, 8)
    expected = torch.tensor([0.5, 2.0, 0.375])[:, None, None].expand(3, 8, 8)
    torch.testing.assert_close(seen, expected)
    kept = Backbone(nn.Flatten(), Preprocessing())(torch.rand(2, 3, 5, 9))
    assert kept.shape == (2, 135)


def test_sharpening_comes_before_resizing() -> None:
    x = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    seen = Backbone(nn.Identity(), Preprocessing(sharpen=0.5), pool="flatten")(x).reshape(x.shape)
    for row, column in product(range(6), range(7)):
        near = x[..., max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean((2, 3))
        pixel = x[..., row, column]
        expected = (pixel + 0.5 * (pixel - near)).clamp(0, 1)
        torch.testing.assert_close(seen[..., row, column], expected)
    enlarged = Backbone(nn.Identity(), Preprocessing(16, sharpen=0.5), pool="flatten")(x)
    by_hand = F.interpolate(seen, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(enlarged, by_hand.flatten(1))
    flat = torch.full((1, 3, 1, 1), 0.25)
    assert torch.equal(Backbone(nn.Flatten(), Preprocessing(sharpen=1.0))(flat), flat.flatten(1))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"size": 0}, "size is 0"),
        ({"sharpen": -0.5}, r"sharpen is -0\.5"),
        ({"std": (1.0, 0.0, 1.0)}, r"std\[1\] is 0\.0: it must be positive"),
        ({"mean": (0.0,)}, "each must have one value per channel"),
    ],
)
def test_preprocessing_that_makes_no_sense(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Preprocessing(**changes)


def test_torchvision_with_a_file_of_the_whole_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = torchvision_module().models.resnet18().eval()
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    backbone = load_backbone("torchvision:resnet18", weights=tmp_path / "w.pt", size=64)
    assert backbone.preprocess.settings.mean == (0.485, 0.456, 0.406)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    images = torch.rand(2, 3, 64, 64)
    whole.fc = nn.Identity()
    torch.testing.assert_close(backbone(images), whole(backbone.preprocess(images)))
    halfway = load_backbone(
        "torchvision:resnet18", weights=tmp_path / "w.pt", size=64, layer="layer2"
    )
    assert halfway.features(IMAGE) == 128


def test_the_real_weights(data_root: Path) -> None:
    name = "mobilenet_v3_small_features_imagenet1k_bnfolded.pth"
    file = data_root / "weights" / name
    backbone = load_backbone("torchvision:mobilenet_v3_small", weights=file, size=64)
    assert backbone.features(IMAGE) == 576
    with pytest.raises(CheckpointError, match=r"does not fit ResNet.*'bn1.bias' is missing"):
        load_backbone("torchvision:resnet18", weights=file)


def test_timm_with_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    whole = timm.create_model("mobilenetv3_small_100").eval()
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone = load_backbone(
        "timm:mobilenetv3_small_100", weights=tmp_path / "w.safetensors", size=64
    )
    images = torch.rand(2, 3, 64, 64)
    whole.reset_classifier(0)
    torch.testing.assert_close(backbone(images), whole(backbone.preprocess(images)))


def test_transformers_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=32,
    )
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    backbone = load_backbone(f"hf:{tmp_path}", pool="first")
    images = torch.rand(2, 3, 32, 32)
    expected = model(pixel_values=backbone.preprocess(images)).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone(images), expected)
    with pytest.raises(ConfigurationError, match="its own folder"):
        load_backbone(f"hf:{tmp_path}", weights=tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"could not be loaded .*save_pretrained"):
        load_backbone(f"hf:{tmp_path / 'nowhere'}")


def test_no_network_and_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fails(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fails)
    message = r"resnet18-\w+\.pth are not in .*checkpoints and could not be downloaded .*put the"
    with pytest.raises(CheckpointError, match=message):
        load_backbone("torchvision:resnet18")
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(
        CheckpointError, match=r"timm:resnet18 are not in the cache .*pass it as weights"
    ):
        load_backbone("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("resnet18", {}, "use torchvision:NAME"),
        ("torchvision:resnet19", {}, "no network 'resnet19': the nearest names are resnet1"),
        ("timm:resnet19", {}, "no network 'resnet19': the nearest names are resnet1"),
        (
            "torchvision:resnet18",
            {"layer": "layer9"},
            "layer 'layer9' is not in the network: use one of",
        ),
        ("own_networks:missing", {}, "cannot be created"),
        ("own_networks:number", {}, "returned int: it must return a torch module"),
    ],
)
def test_names_of_nothing(
    own: types.ModuleType, name: str, settings: dict[str, Any], match: str
) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(ConfigurationError, match=match):
        load_backbone(name, pretrained=False, **settings)


def test_images_that_a_network_does_not_take(own: types.ModuleType) -> None:
    with pytest.raises(ConfigurationError, match=r"fails on images of shape \[3, 2, 2\]"):
        load_backbone("own_networks:net").features(torch.Size((3, 2, 2)))

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:1].flatten(1)

    with pytest.raises(ConfigurationError, match=r"returns shape \[1, 12\] for 2 images"):
        Backbone(Pair()).features(torch.Size((3, 2, 2)))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weight file"):
        read_weights(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(CheckpointError, match="cannot be read as a weight file"):
        read_weights(tmp_path / "text.pt")
    torch.save({"epoch": 3}, tmp_path / "number.pt")
    with pytest.raises(CheckpointError, match="'epoch' is not a tensor"):
        read_weights(tmp_path / "number.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="does not hold a state_dict"):
        read_weights(tmp_path / "list.pt")


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    (tmp_path / "attack.pt").write_bytes(pickle.dumps({"weight": Attack()}))
    with pytest.raises(CheckpointError, match="cannot be read as a weight file"):
        read_weights(tmp_path / "attack.pt")
    assert not (tmp_path / "ran").exists()


def test_weights_of_other_shapes(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 5).state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"'weight' has shape \[5, 3\] instead of \[4, 3\]"):
        load_weights(nn.Linear(3, 4), tmp_path / "w.pt")
