"""A run of the driver as a file, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fewshot_blo.errors import CheckpointError
from fewshot_blo.records.older import state_of_strategy
from fewshot_blo.records.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from fewshot_blo.solving.run import SolveRun

FILE = "last.pt"
_FORMAT = "solve 1"


def open_folder(run: SolveRun, folder: Path, *, resume: bool) -> None:
    """Makes the folder of a run, or takes up the run that it holds.

    Raises:
        CheckpointError: if it holds another run, or there is nothing to resume.
    """
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        if path.exists():
            raise CheckpointError(f"{folder} already holds a run: resume it, or choose another")
        return
    # On the host: the optimizer moves its state, and counts steps there.
    saved = read_tensors(path, "checkpoint")
    outer = run.problem.outer
    device = next(iter(outer.values())).device
    kinds = {name: list(p.shape) for name, p in outer.items()}
    try:
        found = {name: list(p.shape) for name, p in saved["outer"].items()}
        if saved["format"] != _FORMAT or found != kinds:
            raise CheckpointError(
                f"{path} is of a problem with the outer variables {found}, and this one has "
                f"{kinds}: choose another folder"
            )
        with torch.no_grad():
            for name, p in saved["outer"].items():
                outer[name].copy_(p)
        run.optimizer.load_state_dict(saved["optimizer"])
        run.chosen = saved.get("chosen", {})
        run.strategy = replace(run.strategy, **run.chosen)  # type: ignore[type-var]
        run.state = run.strategy.init().restored(state_of_strategy(saved["state"]), device)
        run.step = saved["step"]
        run.best = tree_map_only(Tensor, lambda x: x.to(device), saved["best"])
        run.records_since_best = saved["records_since_best"]
        run.watch.restore(saved.get("watch", {}), device)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{path} lacks a part of a run of solve ({error}): choose another folder"
        ) from error


def save(run: SolveRun, folder: Path) -> None:
    """Writes all that the run needs to go on."""
    content = {
        "format": _FORMAT,
        "step": run.step,
        "outer": {name: p.detach() for name, p in run.problem.outer.items()},
        "optimizer": run.optimizer.state_dict(),
        "chosen": run.chosen,
        "state": run.state.plain(),
        "best": run.best,
        "records_since_best": run.records_since_best,
        "watch": run.watch.plain(),
    }
    write_tensors(content, folder / FILE, "checkpoint")
