"""Networks of timm: a small one of every architecture module."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from torch import nn

from fewshot_blo.tasks.reading.torchvision_import import torchvision_module
from zoo.network import WAY, Network, keep_first

SHALLOW = "shallow"
"""A setting of the zoo, not of timm: keep only the first of consecutive equal blocks."""

_Member = tuple[str, int, dict[str, Any]]

# A module of timm (in the order of timm.list_modules()), a network in it, the image size in pixels,
# and settings that make the network small.
_SMALL_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}
_MEMBERS: dict[str, _Member] = {
    "beit": ("beit_base_patch16_224", 32, {"img_size": 32, **_SMALL_VIT}),
    "byoanet": ("eca_botnext26ts_256", 32, {"img_size": 32, SHALLOW: True}),
    "byobnet": ("test_byobnet", 32, {}),
    "cait": ("cait_xxs24_224", 32, {"img_size": 32, **_SMALL_VIT, "depth_token_only": 1}),
    "coat": (
        "CoaT",
        32,
        {
            "img_size": 32,
            "patch_size": 4,
            "embed_dims": (16, 24, 24, 24),
            "serial_depths": (1, 1, 1, 1),
            "parallel_depth": 1,
        },
    ),
    "convit": ("convit_tiny", 32, {"img_size": 32, "depth": 3, "local_up_to_layer": 2}),
    "convmixer": ("ConvMixer", 32, {"dim": 32, "depth": 3}),
    "convnext": ("test_convnext", 32, {}),
    "cpubone": ("cpubone_nano", 64, {}),
    "crossvit": (
        "CrossVit",
        48,
        {
            "img_size": 48,
            "img_scale": (1.0, 1.0),
            "patch_size": (8, 16),
            "embed_dim": (24, 48),
            "depth": ((1, 2, 0),),
            "num_heads": (2, 2),
            "mlp_ratio": (2.0, 2.0, 1.0),
        },
    ),
    "csatv2": (
        "CSATv2",
        64,
        {"dims": (16, 24, 32, 48), "depths": (1, 1, 2, 2), "transformer_depths": (0, 0, 1, 1)},
    ),
    "cspnet": ("cs3darknet_s", 32, {SHALLOW: True}),
    "cspnext": ("cspnext_tiny", 64, {}),
    "davit": ("davit_tiny", 32, {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (1, 2)}),
    "deepseek_vit": ("deepseek_vit_412m", 56, {"embed_dim": 48, "depth": 2, "num_heads": 3}),
    "deit": ("deit_tiny_patch16_224", 32, {"img_size": 32, **_SMALL_VIT}),
    "densenet": ("densenet121", 32, {"block_config": (2, 2, 2, 2), "growth_rate": 8}),
    "dla": ("dla46x_c", 64, {}),
    "dpn": ("dpn48b", 64, {"k_sec": (1, 1, 1, 1)}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "efficientformer": (
        "efficientformer_l1",
        224,
        {"depths": (1, 1, 1, 2), "embed_dims": (16, 16, 24, 32)},
    ),
    "efficientformer_v2": ("efficientformerv2_s0", 64, {"img_size": 64, SHALLOW: True}),
    "efficientnet": ("test_efficientnet", 32, {}),
    "efficientvim": ("efficientvim_m1", 64, {}),
    "efficientvit_mit": ("efficientvit_b0", 64, {}),
    "efficientvit_msra": ("efficientvit_m0", 64, {"img_size": 64}),
    "eva": ("eva02_tiny_patch14_224", 28, {"img_size": 28, **_SMALL_VIT}),
    "fasternet": ("fasternet_t0", 32, {}),
    "fastvit": ("fastvit_t8", 64, {SHALLOW: True}),
    "focalnet": ("FocalNet", 32, {"depths": (1, 1, 1, 1), "embed_dim": 16}),
    "gcvit": (
        "GlobalContextVit",
        64,
        {
            "img_size": 64,
            "window_size": (2, 2, 2, 2),
            "depths": (1, 1, 1, 1),
            "embed_dim": 16,
            "num_heads": (1, 2, 2, 4),
        },
    ),
    "gemma4_vit": ("gemma4_vit_167m", 48, {"embed_dim": 48, "depth": 2, "num_heads": 3}),
    "ghostnet": ("ghostnet_050", 32, {}),
    "hardcorenas": ("hardcorenas_a", 32, {SHALLOW: True}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "hiera": ("hiera_tiny_224", 64, {"img_size": 64, "embed_dim": 16, "stages": (1, 1, 1, 1)}),
    "hieradet_sam2": (
        "hieradet_small",
        64,
        {"embed_dim": 16, "stages": (1, 1, 1, 1), "num_heads": 1},
    ),
    "hrnet": ("hrnet_w18_small", 32, {SHALLOW: True}),
    "iformer": ("iformer_t", 64, {}),
    "inception_next": ("inception_next_atto", 32, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 75, {SHALLOW: True}),
    "inception_v3": ("inception_v3", 107, {}),
    "inception_v4": ("inception_v4", 75, {SHALLOW: True}),
    "lcnetv2": ("lcnetv2_small", 32, {}),
    "levit": ("levit_128s", 64, {"img_size": 64}),
    "lowformer": ("lowformer_b0", 64, {SHALLOW: True}),
    "mambaout": ("test_mambaout", 32, {}),
    "maxxvit": ("maxvit_pico_rw_256", 64, {"img_size": 64, SHALLOW: True}),
    "metaformer": ("MetaFormer", 32, {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)}),
    "mlp_mixer": (
        "MlpMixer",
        32,
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_blocks": 2},
    ),
    "mobilenetv3": ("mobilenetv3_small_050", 32, {}),
    "mobilenetv5": ("mobilenetv5_base", 64, {"channel_multiplier": 0.125, SHALLOW: True}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "mvitv2": ("mvitv2_tiny", 32, {"img_size": 32, SHALLOW: True}),
    "naflexvit": ("naflexvit_base_patch16_gap", 32, {**_SMALL_VIT}),
    "nasnet": ("NASNetALarge", 64, {"stem_size": 16, "num_features": 384}),
    "nest": (
        "Nest",
        64,
        {"img_size": 64, "depths": (1, 1, 1), "embed_dims": (16, 24, 32), "num_heads": (1, 2, 2)},
    ),
    "nextvit": ("nextvit_small", 32, {"depths": (1, 1, 5, 1), SHALLOW: True}),
    "nfnet": ("test_nfnet", 32, {}),
    "pit": ("pit_ti_224", 64, {"img_size": 64, SHALLOW: True}),
    "pvt_v2": ("pvt_v2_b0", 32, {}),
    "qwen3_vit": ("qwen3_vit_88m", 64, {"embed_dim": 48, "depth": 2, "num_heads": 3}),
    "rdnet": (
        "RDNet",
        32,
        {
            "growth_rates": (8, 8, 8, 8, 8, 8, 8),
            "num_init_features": 16,
            "num_blocks_list": (1, 1, 1, 1, 1, 1, 1),
        },
    ),
    "regnet": ("regnety_002", 32, {}),
    "repghost": ("repghostnet_050", 32, {}),
    "repvit": ("repvit_m1", 32, {SHALLOW: True}),
    "res2net": ("res2net50_14w_8s", 32, {"layers": (1, 1, 1, 1)}),
    "resnest": ("resnest14d", 32, {}),
    "resnet": ("test_resnet", 32, {}),
    "resnetv2": ("resnetv2_18", 32, {}),
    "rexnet": ("rexnet_100", 32, {SHALLOW: True}),
    "selecsls": ("selecsls42", 32, {SHALLOW: True}),
    "senet": ("legacy_seresnet18", 32, {}),
    "sequencer": (
        "sequencer2d_s",
        28,
        {
            "img_size": 28,
            "layers": (1, 1, 1, 1),
            "embed_dims": (16, 24, 24, 24),
            "hidden_sizes": (4, 6, 6, 6),
        },
    ),
    "shvit": ("shvit_s1", 64, {}),
    "sknet": ("skresnet18", 32, {}),
    "starnet": ("starnet_s050", 32, {}),
    "swiftformer": ("swiftformer_xs", 64, {}),
    "swin_transformer": (
        "swin_tiny_patch4_window7_224",
        32,
        {"img_size": 32, "window_size": 2, "depths": (2, 2), "embed_dim": 12, "num_heads": (1, 2)},
    ),
    "swin_transformer_v2": (
        "swinv2_tiny_window8_256",
        32,
        {"img_size": 32, "window_size": 2, "depths": (2, 2), "embed_dim": 12, "num_heads": (1, 2)},
    ),
    "swin_transformer_v2_cr": (
        "swinv2_cr_tiny_224",
        32,
        {"img_size": 32, "window_size": 2, "depths": (2, 2), "embed_dim": 12, "num_heads": (1, 2)},
    ),
    "tiny_vit": ("tiny_vit_5m_224", 32, {SHALLOW: True}),
    "tnt": (
        "TNT",
        32,
        {
            "img_size": 32,
            "embed_dim": 48,
            "inner_dim": 12,
            "depth": 2,
            "num_heads_inner": 2,
            "num_heads_outer": 2,
        },
    ),
    "tresnet": ("tresnet_m", 64, {"layers": (1, 1, 1, 1), "width_factor": 0.25}),
    "twins": (
        "twins_svt_small",
        64,
        {
            "img_size": 64,
            "depths": (2, 2, 2, 2),
            "embed_dims": (16, 16, 32, 32),
            "num_heads": (1, 1, 2, 2),
        },
    ),
    "vgg": (
        "VGG",
        32,
        {
            "cfg": [8, "M", 12, "M", 16, 16, "M", 24, "M", 24, "M"],
            "mlp_ratio": 0.02,
            "norm_layer": nn.BatchNorm2d,
        },
    ),
    "visformer": ("visformer_tiny", 32, {"img_size": 32, "depth": (1, 1, 1), "embed_dim": 48}),
    "vision_transformer": ("test_vit", 32, {"img_size": 32}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 32, {"img_size": 32, "depth": 2}),
    "vision_transformer_relpos": ("test_vit_relpos", 32, {"img_size": 32}),
    "vision_transformer_sam": ("samvit_base_patch16", 64, {"img_size": 64, **_SMALL_VIT}),
    "vitamin": ("vitamin_small_224", 32, {"img_size": 32, "depth": 2}),
    "volo": (
        "VOLO",
        32,
        {
            "img_size": 32,
            "layers": (1, 1, 1, 1),
            "embed_dims": (24, 32, 32, 32),
            "num_heads": (1, 2, 2, 2),
            "use_aux_head": False,
        },
    ),
    "vovnet": ("ese_vovnet19b_slim_dw", 32, {}),
    "xception": ("legacy_xception", 32, {}),
    "xception_aligned": ("xception41p", 32, {SHALLOW: True}),
    "xcit": ("xcit_nano_12_p8_224", 32, {"img_size": 32, "depth": 2, "embed_dim": 32}),
}


def networks() -> list[Network]:
    """The networks by module and name."""
    return [
        Network(
            "timm", f"{module}: {name}", partial(_build, module, name, settings), (3, size, size)
        )
        for module, (name, size, settings) in _MEMBERS.items()
    ]


def _build(module: str, name: str, settings: dict[str, Any]) -> nn.Module:
    torchvision_module()  # timm imports torchvision.
    import timm

    settings = {"num_classes": WAY, **settings}
    shallow = settings.pop(SHALLOW, False)
    made = getattr(importlib.import_module(f"timm.models.{module}"), name)
    network: nn.Module = (
        made(**settings) if isinstance(made, type) else timm.create_model(name, **settings)
    )
    return keep_first(network) if shallow else network
