"""Builds the few-shot problem of a run from its settings."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.data import build_device, build_dtype
from fewshot_blo.experiments.settings import Config
from fewshot_blo.networks import classifier
from fewshot_blo.objectives import CrossEntropy, Metric
from fewshot_blo.problems import FewShotProblem


def build_problem(
    config: Config, image: torch.Size, *, outputs: int | None = None, trained: bool = True
) -> FewShotProblem:
    """Builds the few-shot problem, with initial weights drawn from the seed.

    Args:
        config: the settings.
        image: shape of one example, ``[C, H, W]`` of an image.
        outputs: number of outputs of a task; by default that of its classes.
        trained: whether to load the weights of pretrained networks; False if a checkpoint has them.

    Raises:
        ConfigurationError: if the network fails on such images, or does not return features
            ``[B, D]``.
    """
    device, dtype = build_device(config), build_dtype(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        known = {"channels": image[0] if image else 1, "shape": tuple(image), "trained": trained}
        encoder = config.encoder.build(**known).to(dtype)
        features = _feature_count(encoder, image, dtype)
        way = outputs or config.episodes.drawn(training=True).most_way
        given: dict[str, Any] = {"way": way, "features": features}
        if "network" in inspect.signature(config.problem.kind).parameters:
            given["network"] = classifier(encoder, features, way).to(device, dtype)
        else:
            given["encoder"] = encoder.to(device, dtype)
        return config.problem.build(**given)


@torch.no_grad()
def _feature_count(encoder: nn.Module, image: torch.Size, dtype: torch.dtype) -> int:
    """D of the encoder's features ``[B, D]`` of images ``[B, C, H, W]``."""
    was_training = encoder.training
    encoder.eval()  # The running statistics of a pretrained network must not change.
    failures: tuple[type[Exception], ...] = (RuntimeError,)
    remedy = "choose another encoder, or another image size in the settings of the data set"
    if len(image) != 3:
        failures = (RuntimeError, ConfigurationError)  # A network's advice on images is no help.
        remedy = "choose an encoder for such inputs, as MLP for numbers"
    try:
        features: torch.Tensor = encoder(torch.zeros(2, *image, dtype=dtype))
    except failures as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"the network fails on inputs of shape {list(image)} ({reason}): {remedy}"
        ) from error
    finally:
        encoder.train(was_training)
    if features.ndim != 2:
        raise ConfigurationError(
            f"the network returns shape {list(features.shape)} for 2 inputs; it must return "
            "features [2, D]: flatten or pool its output"
        )
    return features.shape[1]


def metric_of(config: Config) -> Metric:
    """What validation of a run measures: the metric that the problem will have."""
    settings = config.problem.settings
    loss: Metric = settings.get("loss") or CrossEntropy()
    metric: Metric = settings.get("metric") or loss.usual_metric
    return metric
