"""Builds the device, dtype and samplers of a run from its settings."""

from __future__ import annotations

from typing import Any

import torch

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.settings import Config
from fewshot_blo.machine.default_device import default_device
from fewshot_blo.machine.processes import joined, on_this_host
from fewshot_blo.tasks import TaskSource
from fewshot_blo.tasks.any_data_set import Drawing
from fewshot_blo.tasks.protocols import Episodic
from fewshot_blo.tasks.split import Split


def build_device(config: Config) -> torch.device:
    """The device of the run; "auto" is that of ``default_device``.

    Raises:
        ConfigurationError: if the device cannot be used, or several processes would use one GPU.
    """
    if config.device == "auto":
        device = default_device()
        _check_gpus(device)
        return device
    try:
        torch.zeros((), device=config.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"device '{config.device}' cannot be used ({reason}): use cpu or auto"
        ) from error
    _check_gpus(torch.device(config.device))
    return torch.device(config.device)


def _check_gpus(device: torch.device) -> None:
    """Raises where NCCL would find two processes of a run on one GPU."""
    if joined().count == 1 or device.type == "cpu":
        return
    processes, gpus = on_this_host(), torch.cuda.device_count()
    if processes > gpus or (processes > 1 and device.index is not None):
        raise ConfigurationError(
            f"{processes} processes run on this host, which has {gpus} GPUs, with device "
            f"'{device}': start at most one for each GPU with device cuda, or use cpu"
        )


def build_sampler(config: Config, split: Any, *, training: bool) -> TaskSource:
    """The source of training tasks, or of validation and test tasks, from a split.

    Raises:
        ConfigurationError: if the data have no classes, and settings need some.
        DataError: if the split has too few classes or examples for the tasks.
    """
    if not config.data.has_classes:
        _check_unused(config)
    episodes = config.episodes
    sizes = episodes.sizes(training=training)
    drawing = Drawing(
        protocol=episodes.drawn(training=training),
        shot=sizes["shot"],
        query=sizes["query"],
        tasks=episodes.tasks,
        seed=episodes.seed if training else episodes.seed + 1,
        device=build_device(config),
        dtype=build_dtype(config),
        augment=config.augment if training else None,
    )
    return config.data.sampler(split, drawing)


def _check_unused(config: Config) -> None:
    """Raises where settings would have no effect, for the data have no classes."""
    protocol = config.episodes.protocol.kind
    for what, given in (
        (f"protocol {protocol.__name__}", protocol is not Episodic),
        ("augment", config.augment.active),
    ):
        if given:
            raise ConfigurationError(
                f"{what} is for tasks drawn from classes of images or other examples, and "
                f"{config.data.title} has none: leave it out"
            )


def build_outputs(config: Config, split: Split) -> int:
    """Number of outputs that the tasks ask for: their largest way, or entries of their targets."""
    return split.outputs or config.episodes.drawn(training=True).most_way


def build_dtype(config: Config) -> torch.dtype:
    """The floating-point type of images and parameters."""
    return torch.float64 if config.dtype == "float64" else torch.float32
