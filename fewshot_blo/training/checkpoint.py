"""``Checkpoint``: the state of a training run, saved atomically and loaded without running code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.errors import CheckpointError
from fewshot_blo.kernel.outer_variables import OuterVariables
from fewshot_blo.networks.parts import of_encoder
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.records.older import best_validation, state_of_strategy
from fewshot_blo.records.shapes import size
from fewshot_blo.records.tensor_files import read_tensors, write_tensors

_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to resume training and to reproduce an evaluation.

    Attributes:
        step: number of outer steps taken.
        config: settings of the run, as plain data.
        outer: outer variables of the problem.
        buffers: buffers of the network.
        optimizer: state dict of the outer optimizer.
        strategy: state of the strategy, from ``State.plain``.
        settled: choices measured at the start, kept when the run is resumed: backend, chunk size,
            and whether the graphs of inner steps are recomputed.
        best: step and validation value of the best checkpoint so far.
        random_state: state of PyTorch's global generators, for users' modules; tasks and dropout
            do not use them.
        average: moving average of the outer variables; empty if there is none.
        origin: what the run was begun from, as in ``train``; empty in checkpoints of earlier
            versions.
    """

    step: int
    config: Mapping[str, Any]
    outer: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    strategy: Mapping[str, Any]
    settled: Mapping[str, Any]
    best: Mapping[str, Any]
    random_state: Mapping[str, Any]
    average: Mapping[str, Tensor] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Checkpoint(step {self.step}\n  outer: {size(self.outer)})"

    def restore(self, problem: FewShotProblem) -> None:
        """Copies outer variables and buffers into a problem of the same configuration.

        Raises:
            CheckpointError: if a name or shape differs.
        """
        restore_weights(problem, self.outer, self.buffers)
        problem.backend = self.settled["backend"]

    def start(self, problem: FewShotProblem) -> None:
        """Copies the encoder's weights and buffers into another problem, to start a new run.

        Heads and classifiers are not copied; a prefix ``encoder.`` of names is ignored.

        Raises:
            CheckpointError: if a weight of the encoder is missing or has another shape.
        """
        network = problem.network
        saved = of_encoder(OuterVariables.grouped(self.outer).encoder.items())
        buffers = of_encoder(self.buffers.items())
        own, own_buffers = map(of_encoder, (network.named_parameters(), network.named_buffers()))
        _copy(own, {name: saved[name] for name in own if name in saved})
        # The problem may have further running statistics, which training estimates.
        shared = own_buffers.keys() & buffers.keys()
        _copy({n: own_buffers[n] for n in shared}, {n: buffers[n] for n in shared})


def restore_weights(
    problem: FewShotProblem, outer: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> None:
    """Copies outer variables and buffers of the network into a problem of the same configuration.

    Raises:
        CheckpointError: if a name or shape differs.
    """
    _copy(problem.outer, outer)
    _copy(dict(problem.network.named_buffers()), buffers)


def random_state() -> dict[str, Any]:
    """The state of PyTorch's global generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what ``random_state`` returned."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save(checkpoint: Checkpoint, path: Path | str) -> None:
    """Writes a checkpoint atomically: an earlier file at ``path`` stays if writing fails.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    data = {
        **{name: getattr(checkpoint, name) for name in _PLAIN},
        "format": _FORMAT,
        "outer": {name: p.detach() for name, p in checkpoint.outer.items()},
        "buffers": dict(checkpoint.buffers),
        "average": dict(checkpoint.average),
        "strategy": dict(checkpoint.strategy),
        "origin": dict(checkpoint.origin),
    }
    write_tensors(data, Path(path), "checkpoint")


_PLAIN = ("step", "config", "optimizer", "settled", "best", "random_state")


def load(path: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Loads a checkpoint without executing code in the file.

    Args:
        path: path of the file.
        device: device of outer variables, buffers and average. The optimizer's state is loaded on
            the CPU: ``load_state_dict`` moves each part to its parameter's device, except Adam's
            step counts, which stay on the CPU.

    Raises:
        CheckpointError: if the file is missing, truncated or not a checkpoint of this package.
    """
    path = Path(path)
    data = read_tensors(path, "checkpoint")
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of format {_FORMAT} (found {found}): "
            "it was written by another program or version; use a file written by train"
        )
    try:
        random = {
            "cpu": data["random_state"]["cpu"].cpu(),
            "cuda": [generator.cpu() for generator in data["random_state"]["cuda"]],
        }
        best = best_validation(data["best"])
        plain = {**{name: data[name] for name in _PLAIN}, "random_state": random, "best": best}
        return Checkpoint(
            **plain,
            outer=_tensors(data["outer"], device),
            buffers=_tensors(data["buffers"], device),
            strategy=state_of_strategy(data["strategy"]),
            # Earlier versions had neither.
            average=_tensors(data.get("average", {}), device),
            origin=data.get("origin", {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} lacks a part of a checkpoint ({error}): use a file written by train"
        ) from error


def _tensors(mapping: Mapping[str, Any], device: torch.device | str) -> Mapping[str, Tensor]:
    for name, value in mapping.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"'{name}' is not a tensor")
    return {name: value.to(device) for name, value in mapping.items()}


@torch.no_grad()
def _copy(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    if targets.keys() != sources.keys():
        different = sorted(targets.keys() ^ sources.keys())
        raise CheckpointError(
            f"the checkpoint has another configuration: {different[:4]} are in only one of the "
            "checkpoint and the problem; use the configuration saved beside the checkpoint"
        )
    for name, target in targets.items():
        if target.shape != sources[name].shape:
            raise CheckpointError(
                f"the checkpoint has another configuration: '{name}' has shape "
                f"{list(sources[name].shape)} in the checkpoint but {list(target.shape)} in the "
                "problem; use the configuration saved beside the checkpoint"
            )
        target.copy_(sources[name])
