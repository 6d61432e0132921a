"""Building the problem of a saved model, in memory that its tensors justify."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fewshot_blo.backbones.encoders import own, pretrained
from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.problem import build_problem
from fewshot_blo.experiments.settings import Config
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.tasks import DataError
from fewshot_blo.training.checkpoint import restore_weights

_MOST_OUTPUTS = 10_000


def restored(
    config: Config,
    shape: tuple[int, ...],
    outputs: int,
    outer: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    source: str,
) -> FewShotProblem:
    """The problem of a saved model with its weights, in evaluation mode.

    Args:
        config: settings of the run.
        shape: shape of one example.
        outputs: number of outputs of a task.
        outer: outer variables by name.
        buffers: buffers of the network by name.
        source: name of the model, for errors.

    Raises:
        CheckpointError: if the tensors are not those of the settings, by name or shape.
    """
    _check_size(config, shape, outputs, (*outer.values(), *buffers.values()), source)
    try:
        problem = build_problem(config, torch.Size(shape), outputs=outputs, trained=False)
        restore_weights(problem, outer, buffers)
    except (CheckpointError, DataError, ConfigurationError) as error:
        raise CheckpointError(f"{source}: {' '.join(str(error).split())}") from error
    problem.network.eval()
    return problem


def _check_size(
    config: Config, shape: tuple[int, ...], outputs: int, tensors: tuple[Tensor, ...], source: str
) -> None:
    """Raises if the settings describe a network that is larger than the tensors."""
    held = sum(tensor.numel() for tensor in tensors)
    if outputs > _MOST_OUTPUTS:
        raise CheckpointError(
            f"{source} has {outputs} outputs of a task, more than {_MOST_OUTPUTS}: use another copy"
        )
    if config.encoder.kind in (own, pretrained):  # Their sizes are not settings.
        return
    try:
        with torch.device("meta"):
            encoder = config.encoder.build(channels=shape[0], shape=shape, trained=False)
            needed = sum(p.numel() for p in encoder.parameters())
            if "network" in inspect.signature(config.problem.kind).parameters:
                features = encoder.eval()(torch.zeros(2, *shape)).shape[-1]
                needed += outputs * features
    except (RuntimeError, ConfigurationError, ArithmeticError) as error:
        raise CheckpointError(
            f"{source}: its network cannot be built ({' '.join(str(error).split())[:200]}): use "
            "another copy, or the version that wrote it"
        ) from error
    if needed > held:
        raise CheckpointError(
            f"{source}: the network of its settings has {needed:,} parameters and its file "
            f"{held:,} numbers: use the settings that were saved with the weights"
        )


def for_sharing(config: Config) -> Config:
    """The settings without folders of the machine that trained."""
    data = config.data.changed(root="", csv="")
    return replace(config, data=data, start_from="", device="auto")


def example_shape(config: Config, source: str) -> tuple[int, ...]:
    """``[C, H, W]`` of the images of a run.

    Raises:
        ConfigurationError: if its data are not images.
    """
    if not config.data.channels:
        raise ConfigurationError(
            f"{source} was trained on {config.data.title}, which has no images: evaluate it with "
            "evaluate, or restore its checkpoint into a problem"
        )
    size = vars(config.data)["size"]
    return (config.data.channels, size, size)
