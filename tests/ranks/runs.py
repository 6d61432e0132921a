"""What the processes of a group exchange, and runs that they train together."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from small_runs import make_dataset, make_sampler, run
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError, ProcessError
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.machine.processes import Processes
from fewshot_blo.networks import Conv4
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.tasks import EpisodicSampler, TaskBatch
from fewshot_blo.training.train import TrainResult

METHOD = Unroll(InnerSteps(2, SGD(0.1)))


def exchange(processes: Processes) -> dict[str, Any]:
    """What each method returns in this process."""
    rank, tensor = processes.rank, torch.full((2,), 1.0 + processes.rank)
    same = torch.full((2,), float(rank))
    processes.make_same([same])

    def refuse() -> None:
        raise ValueError("no")

    try:
        processes.on_first(refuse)
    except (ProcessError, ValueError) as error:
        refused = f"{type(error).__name__}: {error}"
    return {
        "sum": processes.sum(tensor).tolist(),
        "any": processes.any(rank == 1, False, True),
        "first": processes.from_first(lambda: f"of {rank}"),
        "collected": processes.collect(rank),
        "same": same.tolist(),
        "refused": refused,
    }


def make_quiet() -> SharedEncoder:
    """A problem without randomness, which one process and several train alike."""
    torch.manual_seed(0)
    encoder = nn.Sequential(Conv4(hidden=8), nn.Dropout(0.2)).double()
    return SharedEncoder(encoder, learn_prox=True, backend="loop")


class Signalled(EpisodicSampler):
    """Training tasks; one process is told to stop before it draws batch 3."""

    def __init__(self, told: bool) -> None:
        super().__init__(
            make_dataset(), way=3, shot=1, query=2, tasks=3, seed=0, dtype=torch.float64
        )
        self.told = told

    def batch(self, index: int, embeddings: Tensor | None = None) -> TaskBatch:
        if self.told and index == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(index, embeddings)


def quiet_run(folder: Path, **options: Any) -> TrainResult:
    """A run of three tasks a step."""
    whole: dict[str, Any] = {
        "tasks": make_sampler(make_dataset(), dtype=torch.float64),
        "validation": make_sampler(make_dataset(5, seed=1), seed=1, dtype=torch.float64),
        "problem": make_quiet(),
        "method": METHOD,
    }
    return run(folder, **{**whole, **options})


def train_together(processes: Processes, folder: Path) -> dict[str, Any]:
    """A run to the end, three whose processes differ, and one that a signal to the last process
    alone interrupts."""
    told = processes.rank == processes.count - 1
    whole = quiet_run(folder / "whole")
    differing: dict[str, dict[str, Any]] = {
        "seeds": {"tasks": make_sampler(make_dataset(), seed=processes.rank)},
        "strategies": {"method": Unroll(InnerSteps(2 + processes.rank, SGD(0.1)))},
        "folders": {},
    }
    refused = {}
    for name, options in differing.items():
        place = folder / f"{name}{processes.rank}"
        try:
            quiet_run(place if name == "folders" else folder / name, **options)
        except ConfigurationError as error:
            refused[name] = str(error)
    stopped = quiet_run(folder / "stopped", tasks=Signalled(told))
    return {
        "step": whole.step,
        "refused": refused,
        "stopped": stopped.step,
        "interrupted": stopped.interrupted,
    }


def fail(processes: Processes) -> str:
    """What a process is told where the last one ends without a word."""
    if processes.rank == processes.count - 1:
        os._exit(0)
    try:
        processes.any(False)
    except ProcessError as error:
        return str(error)
    return "nothing"
