"""Builds the device, dtype and samplers of a run from its settings."""

from __future__ import annotations

import logging

import torch

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.settings import Config
from fewshot_blo.machine.default_device import default_device
from fewshot_blo.machine.memory import free_bytes
from fewshot_blo.machine.processes import joined, on_this_host
from fewshot_blo.tasks import ClassDataset, ClassSampler
from fewshot_blo.tasks.inputs import tensors_of

logger = logging.getLogger(__name__)


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


def build_sampler(config: Config, dataset: ClassDataset, *, training: bool) -> ClassSampler:
    """The sampler of training tasks, or of validation and test tasks, from a split."""
    episodes, device = config.episodes, build_device(config)
    return ClassSampler(
        _near(dataset, device),
        episodes.drawn(training=training),
        tasks=episodes.tasks,
        seed=episodes.seed if training else episodes.seed + 1,
        device=device,
        dtype=build_dtype(config),
        augment=config.augment if training else None,
    )


def _near(dataset: ClassDataset, device: torch.device) -> ClassDataset:
    """The data set on the device, or where it is if it would take half of a GPU's free memory."""
    size = sum(x.numel() * x.element_size() for x in tensors_of(dataset.inputs))
    if device.type == "cuda" and size > free_bytes(device) // 2:
        logger.info(
            "%.1f GiB of data stay in the host's memory: the GPU has %.1f GiB free",
            size / 2**30,
            free_bytes(device) / 2**30,
        )
        return dataset
    return dataset.to(device)


def build_dtype(config: Config) -> torch.dtype:
    """The floating-point type of images and parameters."""
    return torch.float64 if config.dtype == "float64" else torch.float32
