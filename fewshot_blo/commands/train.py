"""``fewshot-blo train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fewshot_blo.commands.launched import is_restarted
from fewshot_blo.commands.loading import load
from fewshot_blo.commands.options import Options
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.recipes import names_settings
from fewshot_blo.experiments.report import evaluate_checkpoints
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.experiments.settings import SLOTS, Config
from fewshot_blo.experiments.training import train_from_config
from fewshot_blo.machine.processes import joined
from fewshot_blo.records.checked import checked
from fewshot_blo.records.provenance import launch
from fewshot_blo.records.ranges import Natural
from fewshot_blo.training.run import BEST, LAST, last_launch


@checked
@dataclass(frozen=True)
class TrainRequest:
    """Where to train, and what to do afterwards.

    Attributes:
        run: folder of the run.
        resume: continue the run where it was interrupted.
        test_tasks: tasks of the evaluation at the end; 0 for none.
    """

    run: Path = Path("runs/default")
    resume: bool = False
    test_tasks: Natural = 600

    def __post_init__(self) -> None:
        if names_settings(self.run):
            raise ConfigurationError(
                f"run is '{self.run}', a file of settings: name it with --config {self.run}"
            )


PROCESSES = "together"
OPTIONS = Options((Config, TrainRequest), positional="run", slots=SLOTS, files=True)


def run(config: Config, request: TrainRequest) -> int:
    """Runs it; returns the exit status."""
    folder = request.run
    splits = load(config.data)
    if config.data.channels:
        counts = ", ".join(f"{len(split.class_names)} for {name}" for name, split in splits)
        print(f"classes: {counts}", flush=True)
    else:
        print("\n".join(f"{name}: {split.describe()}" for name, split in splits), flush=True)
    # For random modules of a user's own: PyTorch starts its global generator anew each time.
    torch.manual_seed(config.train.seed + joined().rank)
    result = train_from_config(
        config,
        splits,
        folder,
        resume=request.resume or _goes_on(folder),
        tested=request.test_tasks > 0,
    )
    if result.interrupted:
        print(f"stopped at step {result.step}; continue with the same command and --resume")
        return 130
    value = result.metric.text(result.validation)
    print(f"best validation {result.metric.name} {value} in {result.best}")
    if request.test_tasks:
        measured = EvaluationRequest(tasks=request.test_tasks, output=folder / "evaluation.json")
        function = str(config.encoder.settings.get("function", ""))
        evaluate_checkpoints([folder / BEST], measured, splits, allowed=[function])
    return 0


def _goes_on(folder: Path) -> bool:
    """Whether torchrun has restarted the processes of the run in a folder, which has a save."""
    processes = joined()
    # Hosts may count restarts differently, and all processes have to agree.
    (restarted,) = processes.any(is_restarted())
    goes_on = restarted and processes.from_first(
        lambda: (folder / LAST).exists() and last_launch(folder) == launch() != ""
    )
    if goes_on:
        print(f"started again by torchrun: going on from {folder / LAST}", flush=True)
    return goes_on
