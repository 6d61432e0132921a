"""From the settings of a run to its problem."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from fewshot_blo.backbones import Backbone, load_backbone
from fewshot_blo.backbones.layers import prepared
from fewshot_blo.backbones.load import LIBRARIES, own_network
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.data import build_device, build_dtype
from fewshot_blo.experiments.settings import Config, ProblemSettings
from fewshot_blo.heads import (
    CosineHead,
    FullContextHead,
    Head,
    LabelPropagationHead,
    LinearHead,
    MatchingHead,
    MaxMarginHead,
    RelationHead,
    RidgeHead,
)
from fewshot_blo.networks import NARROW, WIDE, Conv4, ResNet12, WideResNet, classifier
from fewshot_blo.networks.centre import Centre
from fewshot_blo.networks.norms import NORM_LAYERS
from fewshot_blo.problems import FewShotProblem, Initialization, Pretraining, SharedEncoder

NETWORKS = ("conv4", "resnet12", "resnet12_narrow", "wrn_28_10")


def build_problem(config: Config, image: torch.Size, *, pretrained: bool = True) -> FewShotProblem:
    """The few-shot problem for images ``[C, H, W]``, with weights drawn from the seed.

    Args:
        config: the settings.
        image: of one image.
        pretrained: load the weights of pretrained networks; not where a checkpoint brings them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = _encoder(config, image[0], pretrained).to(build_dtype(config))
        features = _feature_count(encoder, image, build_dtype(config))
        way = config.episodes.way
        way = way if isinstance(way, int) else way[1]
        if config.problem.name != "initialization":
            return _shared_encoder(config, encoder, features, way)
        network = classifier(encoder, features, way)
        return _initialization(config, network.to(build_device(config), build_dtype(config)))


def _shared_encoder(config: Config, encoder: nn.Module, features: int, way: int) -> SharedEncoder:
    settings = config.problem
    if settings.centre:
        encoder = nn.Sequential(OrderedDict(encoder=encoder, centre=Centre(features)))
    arguments: dict[str, Any] = {
        "encoder": encoder.to(build_device(config), build_dtype(config)),
        "head": _head(settings),
        "start": settings.start,
        "prox": settings.prox,
        "learn_prox": settings.learn_prox,
        "unit": settings.unit,
        "way": way,
        "features": features,
        "backend": settings.backend,
        "prove": settings.prove,
        "precision": settings.precision,
        "slices": settings.slices,
    }
    if settings.name == "pretraining":
        return Pretraining(classes=settings.classes, **arguments)
    return SharedEncoder(**arguments)


def _head(settings: ProblemSettings) -> Head:
    if settings.head == "linear":
        return LinearHead()
    if settings.head == "ridge":
        return RidgeHead(settings.scale, settings.lam)
    if settings.head == "max_margin":
        return MaxMarginHead(settings.scale, settings.margin_weight)
    if settings.head == "relation":
        return RelationHead(settings.hidden if settings.network == "conv4" else None)
    if settings.head == "propagation":
        return LabelPropagationHead()
    if settings.head == "full_context":
        return FullContextHead(settings.scale)
    return CosineHead(settings.scale) if settings.head == "cosine" else MatchingHead(settings.scale)


def _initialization(config: Config, network: nn.Module) -> Initialization:
    norms = [n for n, module in network.named_modules() if isinstance(module, NORM_LAYERS)]
    names = [name for name, _ in network.named_parameters()]
    prefixes = {
        "all": [""],
        "head": ["head."],
        "body": ["encoder."],
        "no_norms": [name for name in names if name.rpartition(".")[0] not in norms],
    }
    return Initialization(
        network,
        adapted=prefixes[config.problem.adapt],
        start=config.problem.start or "learned",
        step_size=config.inner.step_size if config.inner.rule == "learned" else None,
        entry_steps=config.problem.step_sizes == "entry",
        own_steps=config.inner.steps if config.problem.step_sizes == "step" else 0,
        backend=config.problem.backend,
        prove=config.problem.prove,
        precision=config.problem.precision,
        prox=config.problem.prox or 0.0,
    )


def _encoder(config: Config, channels: int, pretrained: bool) -> nn.Module:
    settings, encoder = config.problem, _network(config, channels, pretrained)
    size = {"size": settings.input_size} if settings.input_size else {}
    if isinstance(encoder, Backbone):
        return encoder.preprocessed(**size, sharpen=settings.sharpen)
    for name in ("input_size", "sharpen"):
        if value := getattr(settings, name):
            raise ConfigurationError(
                f"problem.{name} is {value}, and network '{settings.network}' is a "
                f"{type(encoder).__name__}: only a Backbone resizes and sharpens images"
            )
    return encoder


def _network(config: Config, channels: int, pretrained: bool) -> nn.Module:
    settings = config.problem
    if settings.network.startswith(LIBRARIES):
        weights = (settings.weights or None) if pretrained else None
        return load_backbone(settings.network, weights=weights, pretrained=pretrained)
    if settings.weights:
        raise ConfigurationError(
            f"problem.weights is {settings.weights}, which network '{settings.network}' does not "
            "read: name a run's checkpoint as problem.start_from, or load them in a function of "
            "your own"
        )
    if settings.network in NETWORKS:
        return _untrained(config, channels)
    network = own_network(settings.network, ", ".join(NETWORKS))
    if isinstance(network, Backbone):
        return network.with_body(prepared(network.body))
    return network


def _untrained(config: Config, channels: int) -> nn.Module:
    settings, steps = config.problem, config.inner.steps
    if settings.network == "conv4":
        return Conv4(
            channels=channels,
            hidden=settings.hidden,
            norm=settings.norm,
            steps=steps,
            pools=settings.pools,
        )
    if settings.network == "wrn_28_10":
        return WideResNet(
            channels=channels, norm=settings.norm, drop_rate=settings.drop_rate, steps=steps
        )
    return ResNet12(
        channels=channels,
        widths=WIDE if settings.network == "resnet12" else NARROW,
        norm=settings.norm,
        drop_block=settings.drop_block,
        drop_rate=settings.drop_rate,
        steps=steps,
    )


@torch.no_grad()
def _feature_count(encoder: nn.Module, image: torch.Size, dtype: torch.dtype) -> int:
    """D of the encoder's features ``[B, D]`` of images ``[B, C, H, W]``."""
    was_training = encoder.training
    encoder.eval()  # The running statistics of a pretrained network stay as they are.
    try:
        features: torch.Tensor = encoder(torch.zeros(2, *image, dtype=dtype))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"the network fails on images of shape {list(image)} ({reason}): set data.size, or "
            "use a network for such images"
        ) from error
    finally:
        encoder.train(was_training)
    if features.ndim != 2:
        raise ConfigurationError(
            f"the network returns shape {list(features.shape)} for 2 images; it must return "
            "features [2, D]: flatten or pool its output"
        )
    return features.shape[1]
