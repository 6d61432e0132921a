"""Every layer of ``torch.nn`` in a small network; losses are not layers and are left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zoo.network import WAY, Network
from zoo.torch_modules import (
    Apply,
    Bag,
    BilinearPair,
    Cell,
    Containers,
    Distance,
    FromTokens,
    SelfAttention,
    Sequence,
    Unpool,
    WithContext,
    log_probabilities,
)

Build = Callable[[], nn.Module]
_SIZES = {"vector": (8,), "sequence": (3, 9), "image": (3, 8, 8), "volume": (2, 6, 6, 6)}
_BEFORE: dict[str, Build] = {
    "vector": lambda: nn.Linear(8, 8),
    "sequence": lambda: nn.Conv1d(3, 4, 3, padding=1),
    "image": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "volume": lambda: nn.Conv3d(2, 4, 3, padding=1),
}
_KINDS = ("sequence", "image", "volume")


def networks() -> list[Network]:
    """One network per layer, and several for layers with settings that matter."""
    groups = (
        _activations(),
        _norms(),
        _convolutions(),
        _shapes(),
        _pooling(),
        _dropout(),
        _tokens(),
        _recurrent(),
        _attention(),
        _parametrizations(),
        _rest(),
    )
    return [network for group in groups for network in group]


def _around(kind: str, layer: Build) -> nn.Module:
    """``layer`` between a trainable layer and a classifier of the width that a dry run finds."""
    features = nn.Sequential(_BEFORE[kind](), layer(), nn.Tanh(), nn.Flatten())
    with torch.no_grad():
        width = features(torch.rand(4, *_SIZES[kind])).shape[1]
    return nn.Sequential(features, nn.Linear(width, WAY))


def _in(kind: str, name: str, layer: Build, remark: str = "") -> Network:
    return Network("torch.nn", name, partial(_around, kind, layer), _SIZES[kind], remark)


def _each(layers: dict[str, Build], kind: str, remark: str = "") -> list[Network]:
    return [_in(kind, name, layer, remark) for name, layer in layers.items()]


def _dimensions(name: str, *arguments: object, **settings: object) -> dict[str, Build]:
    """The versions of a layer for 1, 2 and 3 dimensions."""
    return {
        f"{name}{d}d": partial(getattr(nn, f"{name}{d}d"), *arguments, **settings)
        for d in (1, 2, 3)
    }


def _each_dimension(
    name: str, *arguments: object, label: str = "", **settings: object
) -> list[Network]:
    layers = _dimensions(name, *arguments, **settings)
    pairs = zip(_KINDS, layers.items(), strict=True)
    return [_in(kind, key + label, layer) for kind, (key, layer) in pairs]


def _activations() -> list[Network]:
    names = (
        "CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid "
        "Mish PReLU ReLU ReLU6 SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink"
    )
    layers: dict[str, Build] = {name: getattr(nn, name) for name in names.split()}
    layers |= {
        "GELU(tanh)": partial(nn.GELU, approximate="tanh"),
        "GLU": nn.GLU,
        "LogSoftmax": partial(nn.LogSoftmax, dim=1),
        "PReLU(8)": partial(nn.PReLU, 8),
        "Softmax": partial(nn.Softmax, dim=1),
        "Softmin": partial(nn.Softmin, dim=1),
        "Threshold": partial(nn.Threshold, 0.1, 0.2),
        "ReLU(inplace)": partial(nn.ReLU, inplace=True),
    }
    fixed = "its slopes are random: both bounds are one value here"
    return [
        *_each(layers, "vector"),
        _in("vector", "RReLU", partial(nn.RReLU, 0.2, 0.2), fixed),
        _in("image", "Softmax2d", nn.Softmax2d),
    ]


def _norms() -> list[Network]:
    rows = []
    for settings in ({}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}):
        label = "".join(f"({n}={v})" for n, v in settings.items())
        rows += _each_dimension("BatchNorm", 4, label=label, **settings)
    for settings in ({}, {"affine": True}, {"affine": True, "track_running_stats": True}):
        label = f"({', '.join(settings)})" if settings else ""
        rows += _each_dimension("InstanceNorm", 4, label=label, **settings)
    rows += [_in("vector", "BatchNorm1d(vectors)", partial(nn.BatchNorm1d, 8))]
    layers: dict[str, Build] = {
        "SyncBatchNorm": partial(nn.SyncBatchNorm, 4),
        "GroupNorm": partial(nn.GroupNorm, 2, 4),
        "GroupNorm(affine=False)": partial(nn.GroupNorm, 2, 4, affine=False),
        "LayerNorm": partial(nn.LayerNorm, (4, 8, 8)),
        "LayerNorm(bias=False)": partial(nn.LayerNorm, (8,), bias=False),
        "LayerNorm(affine=False)": partial(nn.LayerNorm, (8, 8), elementwise_affine=False),
        "RMSNorm": partial(nn.RMSNorm, (8,)),
        "LocalResponseNorm": partial(nn.LocalResponseNorm, 2),
        "CrossMapLRN2d": partial(nn.CrossMapLRN2d, 2),
    }
    layers |= {f"Lazy{n}": getattr(nn, f"Lazy{n}") for n in ("BatchNorm2d", "InstanceNorm2d")}
    rows += _each(layers, "image")
    for name in ("BatchNorm", "InstanceNorm"):
        rows.append(_in("sequence", f"Lazy{name}1d", getattr(nn, f"Lazy{name}1d")))
        rows.append(_in("volume", f"Lazy{name}3d", getattr(nn, f"Lazy{name}3d")))
    return rows


def _convolutions() -> list[Network]:
    rows = _each_dimension("Conv", 4, 6, 3)
    rows += _each_dimension("Conv", 4, 6, 3, label="(padding=same)", padding="same")
    rows += _each_dimension("Conv", 4, 4, 3, label="(groups)", groups=2, bias=False, dilation=2)
    for mode in ("reflect", "replicate", "circular"):
        rows += _each_dimension("Conv", 4, 4, 3, label=f"({mode})", padding=1, padding_mode=mode)
    rows += _each_dimension("ConvTranspose", 4, 3, 3, stride=2, output_padding=1)
    rows += _each_dimension("ConvTranspose", 4, 2, 2, label="(groups)", groups=2)
    rows += _each_dimension("LazyConv", 5, 3)
    rows += _each_dimension("LazyConvTranspose", 3, 2)
    return rows


def _shapes() -> list[Network]:
    rows = []
    for name in ("CircularPad", "ReflectionPad", "ReplicationPad", "ZeroPad"):
        rows += _each_dimension(name, 1)
    rows += _each_dimension("ConstantPad", 1, 0.5)
    layers: dict[str, Build] = {
        "ChannelShuffle": partial(nn.ChannelShuffle, 2),
        "PixelShuffle": partial(nn.PixelShuffle, 2),
        "PixelUnshuffle": partial(nn.PixelUnshuffle, 2),
        "Unfold": partial(nn.Unfold, 3),
        "Unfold, Fold": lambda: nn.Sequential(nn.Unfold(3), nn.Fold((8, 8), 3)),
        "UpsamplingBilinear2d": partial(nn.UpsamplingBilinear2d, scale_factor=2),
        "UpsamplingNearest2d": partial(nn.UpsamplingNearest2d, scale_factor=2),
        "Flatten, Unflatten": lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 8, 8))),
    }
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area"):
        layers[f"Upsample({mode})"] = partial(nn.Upsample, size=(11, 12), mode=mode)
    rows += _each(layers, "image")
    rows.append(_in("sequence", "Upsample(linear)", partial(nn.Upsample, size=12, mode="linear")))
    size = (7, 8, 7)
    rows.append(_in("volume", "Upsample(trilinear)", partial(nn.Upsample, size, mode="trilinear")))
    return rows


def _pooling() -> list[Network]:
    rows = []
    for name in ("AvgPool", "MaxPool"):
        rows += _each_dimension(name, 2)
        rows += _each_dimension(name, 3, label="(padded)", stride=2, padding=1, ceil_mode=True)
    rows += _each_dimension("LPPool", 2, 2)
    rows += _each_dimension("AdaptiveAvgPool", 4)
    rows += _each_dimension("AdaptiveMaxPool", 4)
    rows.append(_in("image", "MaxPool2d(dilation)", partial(nn.MaxPool2d, 2, dilation=2)))
    for d, kind in ((1, "sequence"), (2, "image"), (3, "volume")):
        rows.append(_in(kind, f"MaxUnpool{d}d", partial(Unpool, d)))
    fixed = "its windows are random: they are given here"
    for d, kind in ((2, "image"), (3, "volume")):
        layer = partial(_fractional, d)
        rows.append(_in(kind, f"FractionalMaxPool{d}d", layer, fixed))
    return rows


def _fractional(dimensions: int) -> nn.Module:
    layer: nn.Module = getattr(nn, f"FractionalMaxPool{dimensions}d")(2, output_size=3)
    return Apply(layer, lambda layer, x: _fractional_windows(layer, x, dimensions))


def _fractional_windows(layer: nn.Module, x: Tensor, dimensions: int) -> Tensor:
    shape = (*x.shape[:2], dimensions)
    layer._random_samples = torch.full(shape, 0.4, dtype=x.dtype)
    result: Tensor = layer(x)
    return result


def _dropout() -> list[Network]:
    names = {
        "Dropout": "vector",
        "Dropout1d": "sequence",
        "Dropout2d": "image",
        "Dropout3d": "volume",
        "AlphaDropout": "vector",
        "FeatureAlphaDropout": "image",
    }
    return [
        _in(kind, f"{name}({p})", partial(_beside, name, p), "masks are random between 0 and 1")
        for name, kind in names.items()
        for p in (0.0, 1.0)
    ]


def _beside(name: str, p: float) -> nn.Module:
    """Dropout of the input added to the input, so that the output depends on it at p = 1 too."""
    return Apply(getattr(nn, name)(p), lambda layer, x: x + layer(x))


def _tokens() -> list[Network]:
    embedding = nn.Embedding
    layers: dict[str, Build] = {
        "Embedding": lambda: embedding(7, 5),
        "Embedding(padding_idx)": lambda: embedding(7, 5, padding_idx=1),
        "Embedding(max_norm)": lambda: embedding(7, 5, max_norm=0.5),
        "Embedding(scale_grad_by_freq)": lambda: embedding(7, 5, scale_grad_by_freq=True),
        "Embedding(sparse)": lambda: embedding(7, 5, sparse=True),
    }
    rows = [
        Network("torch.nn", name, partial(FromTokens, layer), (6,))
        for name, layer in layers.items()
    ]
    for mode in ("mean", "sum", "max"):
        rows.append(Network("torch.nn", f"EmbeddingBag({mode})", partial(Bag, mode, None), (6,)))
    rows.append(Network("torch.nn", "EmbeddingBag(padding_idx)", partial(Bag, "sum", 1), (6,)))
    return rows


def _recurrent() -> list[Network]:
    rows = []
    for name in ("RNN", "LSTM", "GRU"):
        for label, settings in {
            "": {},
            "(bidirectional, 2 layers)": {"bidirectional": True, "num_layers": 2},
        }.items():
            layer = partial(getattr(nn, name), 3, 4, batch_first=True, **settings)
            rows.append(Network("torch.nn", name + label, partial(Sequence, layer), (5, 3)))
        cell = partial(getattr(nn, f"{name}Cell"), 3, 4)
        rows.append(Network("torch.nn", f"{name}Cell", partial(Cell, cell), (5, 3)))
    projected = partial(nn.LSTM, 3, 4, batch_first=True, proj_size=2)
    rows.append(Network("torch.nn", "LSTM(proj_size)", partial(Sequence, projected), (5, 3)))
    relu = partial(nn.RNN, 3, 4, batch_first=True, nonlinearity="relu")
    rows.append(Network("torch.nn", "RNN(relu)", partial(Sequence, relu), (5, 3)))
    return rows


def _attention() -> list[Network]:
    layer: dict[str, Any] = {
        "d_model": 8,
        "nhead": 2,
        "dim_feedforward": 12,
        "dropout": 0.0,
        "batch_first": True,
    }
    encoder = partial(nn.TransformerEncoderLayer, **layer)
    decoder = partial(nn.TransformerDecoderLayer, **layer)
    stacks: dict[str, Build] = {
        "MultiheadAttention": partial(SelfAttention, need_weights=True),
        "MultiheadAttention(need_weights=False)": partial(SelfAttention, need_weights=False),
        "TransformerEncoderLayer": lambda: WithContext(encoder(), context=False),
        "TransformerEncoderLayer(norm_first)": lambda: WithContext(
            encoder(norm_first=True, activation="gelu"), context=False
        ),
        "TransformerEncoder": lambda: WithContext(
            nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False), context=False
        ),
        "TransformerDecoderLayer": lambda: WithContext(decoder(), context=True),
        "TransformerDecoder": lambda: WithContext(
            nn.TransformerDecoder(decoder(), 2), context=True
        ),
        "Transformer": lambda: WithContext(
            nn.Transformer(num_encoder_layers=1, num_decoder_layers=1, **layer), context=True
        ),
    }
    return [Network("torch.nn", name, build, (5, 8)) for name, build in stacks.items()]


def _parametrizations() -> list[Network]:
    new, old = parametrizations, nn.utils
    image: dict[str, Build] = {
        "weight_norm": lambda: new.weight_norm(nn.Conv2d(4, 4, 3)),
        "weight_norm(old)": lambda: old.weight_norm(nn.Conv2d(4, 4, 3)),
        "spectral_norm": lambda: new.spectral_norm(nn.Conv2d(4, 4, 3)),
        "spectral_norm(old)": lambda: old.spectral_norm(nn.Conv2d(4, 4, 3)),
    }
    vector: dict[str, Build] = {
        f"orthogonal({way})": partial(_orthogonal, way)
        for way in ("matrix_exp", "cayley", "householder")
    }
    return [*_each(image, "image"), *_each(vector, "vector")]


def _orthogonal(way: str) -> nn.Module:
    layer: nn.Module = parametrizations.orthogonal(nn.Linear(8, 8), orthogonal_map=way)
    return layer


def _rest() -> list[Network]:
    vector: dict[str, Build] = {
        "Linear": partial(nn.Linear, 8, 5),
        "Linear(bias=False)": partial(nn.Linear, 8, 5, bias=False),
        "LazyLinear": partial(nn.LazyLinear, 5),
        "Bilinear": partial(BilinearPair, 8),
        "ModuleList, ModuleDict, ParameterList, ParameterDict": partial(Containers, 8),
        "CosineSimilarity": lambda: Distance(nn.CosineSimilarity(dim=-1)),
        "PairwiseDistance": lambda: Distance(nn.PairwiseDistance()),
        "DataParallel": lambda: nn.DataParallel(nn.Linear(8, 8)),
    }
    adaptive = partial(nn.AdaptiveLogSoftmaxWithLoss, 8, WAY, cutoffs=[1, 2], div_value=2.0)
    classifier = partial(log_probabilities, adaptive)
    return [
        *_each(vector, "vector"),
        Network("torch.nn", "AdaptiveLogSoftmaxWithLoss", classifier, (8,)),
    ]
